"""Where the server's log ends."""

from __future__ import annotations

import psycopg

from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import source_errors

_POSITION = """
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
             ELSE pg_current_wal_insert_lsn() END)::text
"""
_WAL_PAGE = 8192
_PAGE_HEADERS = (24, 40)
"""Bytes at the beginning of a WAL page, and of the first page of a segment, that hold no record."""


def insert_position(connection: psycopg.Connection) -> Lsn:
    """Where the server's log ends, or a standby's replay of it: everything committed by now commits
    before it."""
    with source_errors():
        row = connection.execute(_POSITION).fetchone()
    assert row is not None
    return _end_of_records(Lsn.parse(row[0]))


def _end_of_records(lsn: Lsn) -> Lsn:
    """Where the last record ends: the insert position already counts the header of a page that
    the next record will begin."""
    offset = lsn.value % _WAL_PAGE
    return Lsn(lsn.value - offset) if offset in _PAGE_HEADERS else lsn
