import pytest

from waly_cdc.errors import UsageError
from waly_cdc.source.selection import Selection


@pytest.mark.parametrize(
    ("pattern", "schema", "name", "matches"),
    [
        ("orders", "public", "orders", True),
        ("orders", "sales", "orders", True),
        ("Orders", "public", "orders", True),
        ("orders", "public", "Orders", False),
        ('"Orders"', "public", "Orders", True),
        ("public.orders", "sales", "orders", False),
        ("order*", "public", "order_items", True),
        ("order?", "public", "orders", True),
        ("order?", "public", "order", False),
        ("*.orders", "sales", "orders", True),
        ('"a.b"', "public", "a.b", True),
        ('"a.b".c', "a.b", "c", True),
        ('"a*"', "public", "ab", False),
        ('"a*"', "public", "a*", True),
        ('"sa""y"', "public", 'sa"y', True),
        ("log[1]", "public", "log1", False),
        ("log[1]", "public", "log[1]", True),
        ("zür*", "public", "zürich", True),
        ('"new\nline"', "public", "new\nline", True),
    ],
)
def test_patterns(pattern: str, schema: str, name: str, matches: bool) -> None:
    assert Selection([pattern]).includes(schema, name) is matches
    assert Selection(exclude=[pattern]).includes(schema, name) is not matches


def test_exclusion_wins() -> None:
    selection = Selection(["public.*"], ["*_log"])
    assert selection.includes("public", "orders")
    assert not selection.includes("public", "audit_log")


def test_patterns_that_match_nothing_are_named() -> None:
    selection = Selection(["orders", "ordrs"])
    assert selection.unmatched([("public", "orders")]) == ["ordrs"]


@pytest.mark.parametrize("pattern", ["", "a.b.c", ".a", "a.", 'a"', '"'])
def test_malformed_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="not a table pattern"):
        Selection([pattern])
