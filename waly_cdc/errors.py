"""Errors that reach the user: each class owns its exit code, each instance its cause and remedy.

WalyError                     1   unexpected error
├── UsageError                2   unknown table or column, malformed WHEN, KEY or SQL
├── VerifyMismatch            4   the archive is not what it should be
│   └── ArchiveCorrupt        4   met while reading: a file, entry or journal chunk fails its checks
├── CouldNotVerify            5   a check could not be run
├── CheckFailed               6   a blocking problem of server, role or archive
├── PointNotInArchive         7   before the first baseline, after the horizon, or in a gap
├── RevertConflict            9   others changed later what is to be undone
├── NoArchive                10   there is no archive there
├── ArchiveLocked            11   another writer holds it
├── SourceError              12   PostgreSQL is unreachable or refuses
│   └── SourceLost           12   the connection broke: trying again can mend it
│       └── SourceMoved      12   the server went on to another timeline while we were connected
├── SlotLost                 13   slot or server cannot give what follows: history has a gap
├── StorageError              1   the disk or store refused: full, read-only, input/output error
├── DecodeError               1   bytes that are no message of the output plugin
├── EmbeddedUnavailable       1   the embedded PostgreSQL cannot be started here
└── TargetError               1   a restore target refused
"""

from __future__ import annotations


class WalyError(Exception):
    """Base of all errors shown to users: `message` says what happened, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(WalyError):
    exit_code = 2


class VerifyMismatch(WalyError):
    exit_code = 4


class ArchiveCorrupt(VerifyMismatch):
    pass


class CouldNotVerify(WalyError):
    exit_code = 5


class CheckFailed(WalyError):
    exit_code = 6


class PointNotInArchive(WalyError):
    exit_code = 7


class RevertConflict(WalyError):
    """`conflicts` are the rows, as JSON objects, where they were only found by the server."""

    exit_code = 9
    conflicts: tuple[dict[str, object], ...] = ()


class NoArchive(WalyError):
    exit_code = 10


class ArchiveLocked(WalyError):
    exit_code = 11


class SourceError(WalyError):
    exit_code = 12


class SourceLost(SourceError):
    pass


class SourceMoved(SourceLost):
    pass


class SlotLost(WalyError):
    exit_code = 13


class StorageError(WalyError):
    pass


class DecodeError(WalyError):
    pass


class EmbeddedUnavailable(WalyError):
    pass


class TargetError(WalyError):
    pass
