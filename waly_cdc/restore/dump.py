"""Reading a schema dump: the table of contents of pg_dump's custom format.

A dump made with `--schema-only` is nothing but its table of contents: every object with its SQL,
its section, its catalog oid and what it depends on. It is read here rather than through
`pg_restore`, so that a restore needs no PostgreSQL programs at all, least of all one as new as the
pg_dump that wrote the dump; and names come as they are, not as a listing prints them.

The format is what `ReadHead` and `ReadToc` of PostgreSQL's pg_backup_archiver.c read: versions 1.14
(PostgreSQL 12 to 15), 1.15 (16) and 1.16 (17 and 18).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from waly_cdc.errors import ArchiveCorrupt

_MAGIC = b"PGDMP"
_CUSTOM = 1
_OLDEST, _NEWEST = (1, 14), (1, 16)
_TIME_FIELDS = 7


class Section(enum.IntEnum):
    """When an object is restored, relative to the rows."""

    NONE = 1
    PRE_DATA = 2
    DATA = 3
    POST_DATA = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a dump.

    `kind` is pg_dump's word (`TABLE`, `FK CONSTRAINT`, …), `catalog` the oid of the system catalog
    that `oid` belongs to (0 where the item is no object of its own), `partitioned` says of a table
    that it has no rows of its own, `depends_on` lists the ids of items that must be there first. A
    dump lists its items in an order that satisfies that.
    """

    id: int
    kind: str
    schema: str
    tag: str
    section: Section
    sql: str
    catalog: int = 0
    oid: int = 0
    access_method: str = ""
    partitioned: bool = False
    depends_on: tuple[int, ...] = ()


def read_items(content: bytes) -> list[Item]:
    """The items of a dump in pg_dump's custom format, in order. Raises ArchiveCorrupt."""
    reader = _Reader(content)
    try:
        version = _read_head(reader)
        return [_read_item(reader, version) for _ in range(reader.integer())]
    except (IndexError, ValueError, OverflowError) as error:
        raise ArchiveCorrupt(f"a schema dump of the archive is damaged: {error}") from error


class _Reader:
    """A cursor over a dump's bytes. Raises IndexError at their end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        self.integer_size = 4
        self.offset_size = 8

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._content):
            raise IndexError("it ends too early")
        taken = self._content[self._position : end]
        self._position = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        """A sign byte, then the magnitude in little-endian order."""
        negative = self.byte()
        magnitude = int.from_bytes(self.take(self.integer_size), "little")
        return -magnitude if negative else magnitude

    def text(self) -> str | None:
        """A length and so many bytes; a negative length stands for no text."""
        length = self.integer()
        return None if length < 0 else self.take(length).decode()


def _read_head(reader: _Reader) -> tuple[int, int]:
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is not in pg_dump's custom format")
    version = (reader.byte(), reader.byte())
    reader.byte()  # revision
    if not _OLDEST <= version <= _NEWEST:
        raise ArchiveCorrupt(
            f"a schema dump has version {version[0]}.{version[1]} of pg_dump's format,"
            f" and this waly reads {_OLDEST[0]}.{_OLDEST[1]} to {_NEWEST[0]}.{_NEWEST[1]}",
            hint="use a newer version of waly",
        )
    reader.integer_size = reader.byte()
    reader.offset_size = reader.byte()
    if reader.byte() != _CUSTOM:
        raise ValueError("it is not in pg_dump's custom format")
    if version >= (1, 15):
        reader.byte()  # compression algorithm
    else:
        reader.integer()  # compression level
    for _ in range(_TIME_FIELDS):
        reader.integer()
    for _ in ("database", "server version", "pg_dump version"):
        reader.text()
    return version


def _read_item(reader: _Reader, version: tuple[int, int]) -> Item:
    number = reader.integer()
    reader.integer()  # whether there is data
    catalog, oid = int(reader.text() or 0), int(reader.text() or 0)
    tag, kind = reader.text() or "", reader.text() or ""
    section = Section(reader.integer())
    sql = reader.text() or ""
    reader.text()  # the statement that drops it
    reader.text()  # the statement that copies it
    schema = reader.text() or ""
    reader.text()  # tablespace
    access_method = reader.text() or ""
    # Before 1.16 a dump does not tell the kind of relation, and partitioned tables had no method.
    partitioned = chr(reader.integer()) == "p" if version >= (1, 16) else not access_method
    reader.text()  # owner
    reader.text()  # whether the table has oids
    depends_on = []
    while (dependency := reader.text()) is not None:
        depends_on.append(int(dependency))
    reader.take(1 + reader.offset_size)  # where its data is
    return Item(
        id=number,
        kind=kind,
        schema=schema,
        tag=tag,
        section=section,
        sql=sql,
        catalog=catalog,
        oid=oid,
        access_method=access_method,
        partitioned=kind == "TABLE" and partitioned,
        depends_on=tuple(dict.fromkeys(depends_on)),
    )
