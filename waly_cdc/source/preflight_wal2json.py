"""Preflight: wal2json, where it is the plugin: whether the server has it, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import LiteralString

from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.plugins import LOSSES, MESSAGE_ZERO_BYTES, SPECIAL_NUMBERS, TABLES_BY_NAME, WAL2JSON
from waly_cdc.relations import IDENTITY_FULL
from waly_cdc.source.catalog import Table
from waly_cdc.source.preflight_look import Look, some

_NUMBERS = frozenset({700, 701, 1700})
"""Type oids of real, double precision and numeric, which have values that are not numbers."""


def _installed(look: Look) -> Iterator[Finding]:
    installed = _ask(look, _INSTALLED)
    if installed is False:
        major = look.facts.server_version // 10000
        yield Finding(
            "plugin_installed",
            FAIL,
            WAL2JSON,
            "the server does not have the plugin: install it there (Debian: apt-get install"
            f" postgresql-{major}-wal2json)",
        )
    elif installed or (look.slot_info is not None and look.slot_info.plugin == WAL2JSON):
        yield Finding("plugin_installed", PASS, WAL2JSON, "the server has the plugin")
    else:
        yield Finding(
            "plugin_installed",
            WARN,
            WAL2JSON,
            f"role {look.facts.role} may not see whether the server has the plugin: `waly init`"
            " will tell",
        )


def _encoding(look: Look) -> Iterator[Finding]:
    if look.facts.encoding != "UTF8":
        yield Finding(
            "plugin_encoding",
            FAIL,
            WAL2JSON,
            f"it sends texts in the database's encoding, {look.facts.encoding}, and not in UTF8:"
            " use pgoutput, or load the database into one with encoding UTF8",
        )


def _type_names(look: Look) -> Iterator[Finding]:
    """wal2json writes a type's name unescaped if it begins with a double quote."""
    for schema, name in look.rows(_UNREADABLE_TYPES):
        yield Finding(
            "plugin_type_name",
            FAIL,
            f"type {schema}.{name}",
            "wal2json writes its name in a way that cannot be read: give schema and type names"
            " without backslashes",
        )


def _losses(look: Look) -> Iterator[Finding]:
    kept = _ask(look, _NUMBERS_AS_TEXT)
    if kept:
        yield Finding("plugin_loss", PASS, SPECIAL_NUMBERS, "NaN and Infinity arrive as they are")
    else:
        version = (
            "this version has not the option numeric-data-types-as-string, which 2.6 brought"
            if kept is False
            else "versions before 2.6 have not the option numeric-data-types-as-string"
        )
        yield Finding("plugin_loss", WARN, SPECIAL_NUMBERS, f"{LOSSES[SPECIAL_NUMBERS]}: {version}")
        yield from _endangered(look)
    for loss in (MESSAGE_ZERO_BYTES, TABLES_BY_NAME):
        yield Finding("plugin_loss", WARN, loss, LOSSES[loss])


def _endangered(look: Look) -> Iterator[Finding]:
    """Tables that have columns for special numbers; worse, where rows are told apart by them."""
    told_apart: list[str] = []
    others: list[str] = []
    for table in look.logged:
        numbers = [column.name for column in table.columns if column.type_oid in _NUMBERS]
        if not numbers:
            continue
        names = f"{table.qualified_name} ({some(numbers)})"
        (told_apart if _tells_apart(table, numbers) else others).append(names)
    if told_apart:
        yield Finding(
            "special_numbers",
            WARN,
            some(told_apart),
            "rows are told apart by these columns: once a NaN or an Infinity is in them, states of"
            " the table may be wrong until its next baseline. Give it a key without them, or use"
            " pgoutput",
        )
    if others:
        message = "a NaN or an Infinity that is written to these columns is archived as NULL"
        yield Finding("special_numbers", WARN, some(others), message)


def _tells_apart(table: Table, numbers: list[str]) -> bool:
    if table.key:
        return bool(set(table.key) & set(numbers))
    return table.replica_identity == IDENTITY_FULL


def _ask(look: Look, query: LiteralString) -> bool | None:
    """What the server's copy of the plugin shows; None where the role may not look at it."""
    (may,) = look.row(_MAY_LOOK)
    if not may:
        return None
    (found,) = look.row(query)
    return None if found is None else bool(found)


WAL2JSON_CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (
    _installed,
    _encoding,
    _type_names,
    _losses,
)

_MAY_LOOK: LiteralString = """
SELECT has_function_privilege('pg_config()', 'EXECUTE')
       AND has_function_privilege('pg_stat_file(text, boolean)', 'EXECUTE')
       AND has_function_privilege('pg_read_binary_file(text)', 'EXECUTE')
       AND (pg_has_role('pg_read_server_files', 'MEMBER')
            OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
"""
_LIBRARY: LiteralString = """
SELECT setting || '/wal2json.so' FROM pg_config() WHERE name = 'PKGLIBDIR'
"""
_INSTALLED: LiteralString = "SELECT (pg_stat_file((" + _LIBRARY + "), true)).size IS NOT NULL"
# The names of the options that it knows stand in it.
_NUMBERS_AS_TEXT: LiteralString = (
    "SELECT CASE WHEN (pg_stat_file((" + _LIBRARY + "), true)).size IS NOT NULL"
    " THEN position('numeric-data-types-as-string'::bytea IN"
    " pg_read_binary_file((" + _LIBRARY + "))) > 0 END"
)
_UNREADABLE_TYPES: LiteralString = """
SELECT DISTINCT n.nspname, t.typname
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
      AND quote_ident(n.nspname) LIKE '"%' AND position('\\' IN n.nspname || t.typname) > 0
ORDER BY 1, 2
"""
