"""wal2json as the server's plugin: the options it is asked for, and what its version cannot give.

Versions 2.4 and 2.5 know all of `_OPTIONS`, 2.6 also `numeric-data-types-as-string` (wal2json's
README and its list of releases). A plugin does not tell its version: an option that it does not
know is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from waly_cdc.errors import SourceError
from waly_cdc.plugins import MESSAGE_ZERO_BYTES, SPECIAL_NUMBERS, TABLES_BY_NAME
from waly_cdc.source.connect import source_error

_OPTIONS = {
    "format-version": "2",
    "include-xids": "true",
    "include-timestamp": "true",
    "include-lsn": "true",
    "include-pk": "true",
    "include-types": "true",
    "include-typmod": "true",
    "include-type-oids": "true",
    "include-column-positions": "true",
    # Applications' messages that are not for us; the prefix is `waly_cdc.decode.messages.PREFIX`.
    "add-msg-prefixes": "waly",
}
_NUMBERS_AS_TEXT = {"numeric-data-types-as-string": "true"}

BUSY_RETRY = 15.0
"""Seconds to wait for the server to notice that the slot's last reader is gone."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server's wal2json gives: the options to stream with, and its losses by name."""

    options: dict[str, str]
    losses: tuple[str, ...]


def look(connection: psycopg.Connection, slot: str) -> Offer:
    """Try the plugin's options on the slot, without taking anything from it.

    Raises SourceError for a version that is too old, and when the slot is in use for too long.
    """
    always = (MESSAGE_ZERO_BYTES, TABLES_BY_NAME)
    if _accepts(connection, slot, _OPTIONS | _NUMBERS_AS_TEXT):
        return Offer(_OPTIONS | _NUMBERS_AS_TEXT, always)
    if _accepts(connection, slot, _OPTIONS):
        return Offer(_OPTIONS, (SPECIAL_NUMBERS, *always))
    raise SourceError(
        "the server's wal2json does not know all the options that waly needs",
        hint="install version 2.4 or later of wal2json, or use the plugin pgoutput",
    )


def _accepts(connection: psycopg.Connection, slot: str, options: dict[str, str]) -> bool:
    given = [text for option in options.items() for text in option]
    deadline = time.monotonic() + BUSY_RETRY
    while True:
        try:
            # Up to a place that the log has long passed: the plugin starts, and nothing is decoded.
            connection.execute(
                "SELECT count(*) FROM pg_logical_slot_peek_changes(%s, '0/1', 1, VARIADIC %s)",
                (slot, given),
            )
            return True
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > deadline:
                raise source_error(error) from error
            time.sleep(0.2)
        except psycopg.errors.InvalidParameterValue:
            return False
        except psycopg.Error as error:
            raise source_error(error) from error
