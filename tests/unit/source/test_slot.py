import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waly_cdc.errors import UsageError
from waly_cdc.source import publication
from waly_cdc.source.slot import check_name, default_name


def test_a_plain_database_names_its_slot() -> None:
    assert default_name("shop") == "waly_shop"


@pytest.mark.parametrize("database", ["Shop", "shop-eu", "shöp", "x" * 63, "shop_0a1b2c3d", "a b"])
def test_other_names_get_a_hash(database: str) -> None:
    assert re.fullmatch(r"waly_[a-z0-9_]*_[0-9a-f]{8}", default_name(database))


@given(st.text(min_size=1, max_size=63), st.text(min_size=1, max_size=63))
def test_names_are_valid_and_distinct(one: str, other: str) -> None:
    name = default_name(one)
    assert check_name(name) == name
    assert all(len(p) <= 63 and p.startswith(name) for p in publication.names(name))
    if one != other:
        assert name != default_name(other)


@pytest.mark.parametrize("name", ["", "Shop", "a-b", "x" * 64, 'a"b', "ä"])
def test_what_no_slot_may_be_called(name: str) -> None:
    with pytest.raises(UsageError, match="not a slot name"):
        check_name(name)
