import pytest

from waly_cdc.errors import UsageError
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn, AtTime, AtTransaction, When, parse_when


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("0/1A2B3C8", AtLsn(Lsn(0x1A2B3C8))),
        ("2:0/1A2B3C8", AtLsn(Lsn(0x1A2B3C8), 2)),
        ("xid:8812^", AtTransaction(8812, before=True)),
        ("12:xid:8812", AtTransaction(8812, before=False, era=12)),
    ],
)
def test_an_lsn_and_a_transaction_may_name_their_era(text: str, point: When) -> None:
    assert parse_when(text) == point


@pytest.mark.parametrize("text", ["2:latest", "2:", "x:0/1A", "2:0/XYZ", "2:1:0/1A", ":0/1A"])
def test_other_points_have_no_era(text: str) -> None:
    with pytest.raises(UsageError, match="not a point"):
        parse_when(text)


def test_an_era_is_not_taken_for_an_hour() -> None:
    assert isinstance(parse_when("2026-11-23 14:05 Europe/Berlin"), AtTime)
