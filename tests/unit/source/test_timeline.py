import pytest

from waly_cdc.errors import SourceError
from waly_cdc.lsn import Lsn
from waly_cdc.source.timeline import Ended, left_at, parse_history


def ended(*pairs: tuple[int, int]) -> Ended:
    return tuple((timeline, Lsn(end)) for timeline, end in pairs)


def test_a_history_file_is_read_without_comments_and_reasons() -> None:
    text = "1\t0/3000000\tno recovery target specified\n\n# note\n2\t1/A0\tbefore 2026-11-24\n"
    assert parse_history(text) == ((1, Lsn(0x3000000)), (2, Lsn(0x1_000000A0)))
    assert parse_history("") == ()
    with pytest.raises(SourceError):
        parse_history("1\tnowhere\t\n")


@pytest.mark.parametrize(
    ("known", "known_ended", "now", "left"),
    [
        # The same timeline, further on; and one that has ended since.
        (1, ended(), ended((1, 900)), 900),
        (1, ended(), ended((1, 500), (2, 900)), 500),
        (2, ended((1, 300)), ended((1, 300), (2, 700), (5, 900)), 700),
        # The old primary, still on the timeline that the archive's left.
        (2, ended((1, 300)), ended((1, 250)), 250),
        (2, ended((1, 300)), ended((1, 900)), 300),
        # Two timelines of one number, begun at different places; and two children of one.
        (2, ended((1, 300)), ended((1, 280), (2, 900)), 280),
        (2, ended((1, 300)), ended((1, 300), (3, 900)), 300),
        # Nothing in common.
        (1, ended(), ended((4, 900)), None),
        (3, ended((1, 100), (2, 200)), ended((1, 100), (4, 900)), None),
    ],
)
def test_where_two_histories_part(
    known: int, known_ended: Ended, now: Ended, left: int | None
) -> None:
    assert left_at(known, known_ended, now) == (None if left is None else Lsn(left))
