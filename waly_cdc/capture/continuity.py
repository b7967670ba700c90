"""Does the history that the archive holds go on here? Looked at before capture begins or goes on.

An archive reaches to its horizon H, and the journal may reach further: call R the LSN before which
we have everything that the database committed. Capture may go on if, and only if, (a) the server's
log up to R is the log that was read, and (b) the slot sends every commit from R on. Then no commit
is missed, none is taken twice, and no LSN means two things. What is looked at, and why that is
enough:

* **Database.** System identifier and database oid are the recorded ones. initdb and pg_upgrade make
  a new system identifier, CREATE DATABASE a new oid; nothing else changes either.
* **Position** (a). What a server sent us it had flushed, and a server loses nothing flushed. One
  whose log ends before R was put back to an older state. (A standby may have to replay first.)
* **Timelines** (a). The manifest holds the timeline on which its horizon was read, and the history
  of that timeline. Recovery up to a point and promotion begin a new timeline, and its history file
  says where it left the old one. If that is at or after R, the server's log up to R is ours; if it
  is before, the server lacks log that we have, and has or will have other log with the same LSNs.
  Two timelines of one number that were begun independently differ in where they began. A standby
  that is streamed from goes on to another timeline under the stream; that is noticed within a
  second, noted from the same server, and all is looked at anew. If we are killed within that
  second, a history may be called broken that is not.
* **Overlap** (a). A server that was put back by its disk's snapshot begins no timeline, and may
  have written past R again. But then its slot was put back too and stands before R. Whenever the
  slot stands before R, which also a crash brings about, the server is made to send what lies
  between once more, and its transactions must be the archive's: LSN, xid and commit time of each,
  and none more or less. If they are, then what the database committed before R is what we have,
  whichever way the server came here.
* **Slot** (b). It is there, not lost, of our database and plugin, and its confirmed position is at
  or before R: a slot sends every commit from its confirmed position on. One that was made anew
  stands where the server's log ended then. On the log that (a) proves this is at or after all that
  we have, so it is found by standing after R, as is one that somebody else has read from; and where
  it stands at R exactly nothing is missing.

Not found is one case: a disk put back, the slot then dropped and made anew before R, and no commit
of ours on either side between there and R, by which the two logs could be told apart.

Nothing here mends anything: a broken history is an error with the command by which the user begins
a new era (`waly_cdc.capture.new_era`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from psycopg import conninfo

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Source
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.overlap import differs
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import NoArchive, SlotLost, SourceError, SourceLost, WalyError
from waly_cdc.lsn import Lsn
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import slot as source_slot
from waly_cdc.source.timeline import left_at, started, timelines

REPLAY_PATIENCE = 60.0
"""Seconds that a standby which has just been started has to come to where it was."""


@dataclass(frozen=True, slots=True)
class Break:
    """Why the history does not go on.

    `confirm` is the identity of another database that the user must confirm, `strange` says that it
    does not even look like the archive's.
    """

    reason: str
    confirm: str | None = None
    strange: bool = False


class Continuity:
    """The checks, for one connection. Each gives the break that it finds, or None."""

    def __init__(
        self, archive: ArchiveWriter, catalog: CatalogWatch, settings: CaptureSettings
    ) -> None:
        """Raises NoArchive where the archive has no baseline yet, SourceError."""
        contents: Contents = archive.contents
        if contents.source is None or contents.beginning is None:
            raise NoArchive(
                f"the archive at {settings.archive} has no baseline",
                hint="run `waly init` (again, if it was interrupted)",
            )
        self.source: Source = contents.source
        self._archive = archive
        self._catalog = catalog
        self._settings = settings
        self.facts = source_catalog.server_facts(catalog.connection)
        self._timelines = timelines(settings.dsn)
        if settings.slot not in (None, self.source.slot):
            raise SourceError(
                f"the archive was made with slot {self.source.slot}, not {settings.slot}",
                hint="leave out --slot",
            )

    def require(self, found: Break | None) -> None:
        """Raise SlotLost for a break, SourceError for a database that looks like another one."""
        if found is not None:
            raise self.error(found)

    def error(self, found: Break) -> WalyError:
        """The error that tells of a break, with the command by which to go on."""
        begin = new_era_command(self._settings, found.confirm)
        if found.strange:
            return SourceError(
                found.reason,
                hint="check --dsn and --archive: an archive holds one database. If this is the"
                f" archive's database all the same, begin a new era in it: {begin}",
            )
        return SlotLost(
            found.reason,
            hint=f"nothing after {self._archive.contents.horizon} can be added to this history. To"
            f" keep it, and to go on after a gap with new baselines, run: {begin}",
        )

    def other_database(self) -> Break | None:
        """Whether the connection leads to another database."""
        facts, source = self.facts, self.source
        identity = f"{facts.system_identifier}/{facts.database_oid}"
        if identity == source.identity:
            return None
        told = (
            f"the archive belongs to database {source.database!r} of server"
            f" {source.system_identifier}, and the connection leads to {facts.database!r} of"
            f" server {facts.system_identifier}"
        )
        if facts.database != source.database or not self._has_tables():
            return Break(told, confirm=identity, strange=True)
        return Break(
            f"{told}, which has the same tables: after pg_upgrade or dump and restore it is the"
            " archive's database, with another history; or it is a copy",
            confirm=identity,
        )

    def other_log(self, reach: Lsn) -> Break | None:
        """Whether the server's log up to `reach` is another than the one that was read. Raises
        SourceError for a standby that does not come that far."""
        if self.facts.is_in_recovery:
            self._await_replay(reach)
        elif self.facts.current_lsn < reach:
            return Break(
                f"the server's log ends at {self.facts.current_lsn}, and the archive reaches to"
                f" {reach}: the server was put back to an older state",
            )
        source, now = self.source, self._timelines
        end = max(reach, self.facts.current_lsn)
        left = left_at(source.timeline, source.ended, (*now.ended, (now.current, end)))
        if left is None or left < reach:
            return Break(
                f"the server is on timeline {now.current}, which left the archive's timeline"
                f" {source.timeline} at {left or 'an unknown position'}, before {reach}: it is a"
                " standby that was promoted without the last changes, or was restored from a"
                " backup",
            )
        return None

    def unfit_slot(self) -> Break | None:
        """Whether the slot cannot send all that follows the archive's horizon, or would send other
        transactions than the archive has."""
        source, horizon = self.source, self._archive.contents.horizon
        found = source_slot.info(self._catalog.connection, source.slot)
        if found is None:
            return Break(f"replication slot {source.slot} is gone")
        if found.lost:
            why = found.invalidation or "wal_status lost"
            return Break(
                f"slot {source.slot} is lost: the server has removed log that it needs ({why})"
            )
        if (found.database, found.plugin) != (self.facts.database, source.plugin):
            return Break(
                f"slot {source.slot} was made anew: it is of database {found.database} and plugin"
                f" {found.plugin}"
            )
        confirmed = found.confirmed_flush_lsn
        if confirmed is None or confirmed > horizon:
            return Break(
                f"slot {source.slot} stands at {confirmed}, after the archive's horizon"
                f" {horizon}: it was made anew, or somebody else has read from it"
            )
        if confirmed < horizon and differs(self._archive, self._settings.dsn, source, confirmed):
            return Break(
                f"from {confirmed} to {horizon} the server has other transactions than the archive:"
                " it was put back to an older state",
            )
        return None

    def describe(self) -> Source:
        """The source as the server is now; slot, plugin and publications are the archive's."""
        return replace(
            self.source,
            system_identifier=self.facts.system_identifier,
            database=self.facts.database,
            database_oid=self.facts.database_oid,
            timeline=self._timelines.current,
            ended=self._timelines.ended,
            server_version=self.facts.server_version,
        )

    def note_source(self, losses: Iterable[str] = ()) -> None:
        """Let the manifest say on which timeline, and of which version, the history goes on, and
        what its plugin loses: what is received from now on is of this one. Written before anything
        is."""
        now = self.describe()
        now = replace(now, losses=tuple(dict.fromkeys((*now.losses, *losses))))
        if now != self.source:
            self._archive.commit("source", end=self._archive.contents.horizon, source=now)
            self.source = now

    def follow(self) -> None:
        """The same for a standby that went on to another timeline while it was streamed from: what
        the journal has of it needs no other proof than that it is the same server still."""
        now = timelines(self._settings.dsn)
        if now.started == started(self._catalog.connection):
            self._timelines = now
            self.note_source()

    def _has_tables(self) -> bool:
        """Whether the connection's database has most of the tables of the archive."""
        contents = self._archive.contents
        at_end = (contents.version_at(oid, contents.horizon + 1) for oid in contents.relations)
        wanted = {(version.schema, version.name) for version in at_end if version is not None}
        there = source_catalog.tables(self._catalog.connection, unlogged=True)
        found = wanted & {(table.schema, table.name) for table in there}
        return 2 * len(found) >= len(wanted)

    def _await_replay(self, reach: Lsn) -> None:
        deadline = time.monotonic() + REPLAY_PATIENCE
        while self.facts.current_lsn < reach:
            if time.monotonic() > deadline:
                raise SourceError(
                    f"the standby has replayed up to {self.facts.current_lsn}, and the archive"
                    f" reaches to {reach}",
                    hint="does it still follow its primary? Start again when it has caught up",
                )
            time.sleep(0.5)
            self.facts = source_catalog.server_facts(self._catalog.connection)
            if not self.facts.is_in_recovery:
                raise SourceLost("the standby was promoted in this moment")


def new_era_command(settings: CaptureSettings, confirm: str | None) -> str:
    """The command that begins a new era. It holds no password."""
    words = ["waly", "init", "--new-era", "--archive", str(settings.archive)]
    if settings.dsn:
        parts = conninfo.conninfo_to_dict(settings.dsn)
        shown = {name: value for name, value in parts.items() if "password" not in name}
        words += ["--dsn", conninfo.make_conninfo("", **shown)]
    if confirm is not None:
        words += ["--confirm-source", confirm]
    return shlex.join(words)
