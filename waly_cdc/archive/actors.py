"""Who made a transaction: what each source tells, and all of it in one.

* `message`: the transaction itself said so, by `pg_logical_emit_message(true, 'waly', json)`;
* `witness`: its session was seen while its commit waited for us;
* `trigger`: a trigger of ours said so, in the transaction;
* `sample`: a look at `pg_stat_activity` happened to see it while it was open. Short transactions
  are missed.

Without any of them the actor is `unknown`, which is recorded as such and never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

TEXT_LIMIT = 16_384
"""Bytes kept of a message or a query: both are the client's, of any size."""

GRADES = ("message", "witness", "trigger", "sample")
"""The sources of an actor, the one that counts most first."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who made a transaction, and how that is known. `backend_start` is microseconds since 1970,
    UTC."""

    source: str = "unknown"
    user: str | None = None
    application_name: str | None = None
    client_addr: str | None = None
    client_port: int | None = None
    pid: int | None = None
    backend_start: int | None = None
    query: str | None = None
    context: str | None = None


UNKNOWN = Actor()


def told(message: bytes) -> Actor:
    """The actor that a transaction's own message names.

    The content is the application's, so anything may be in it: what is no JSON object is kept as
    text and names nobody.
    """
    text = message[:TEXT_LIMIT].decode("utf-8", errors="replace").replace("\0", "\ufffd")
    user = None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        name = content.get("actor", content.get("user"))
        # JSON can name half a surrogate pair, which no UTF-8 text can hold.
        user = name.encode("utf-8", "replace").decode() if isinstance(name, str) else None
    return Actor("message", user=user or None, context=text)


def merged(sources: Sequence[Actor]) -> Actor:
    """One actor of all that the sources tell, each field from the best source that has it; it is
    named for the best source that names a user. Unknown where there is no source."""
    if not sources:
        return UNKNOWN
    best = sorted(sources, key=lambda actor: GRADES.index(actor.source))
    naming = next((actor for actor in best if actor.user is not None), best[0])
    known: dict[str, Any] = {}
    for field in fields(Actor):
        told_values = (getattr(actor, field.name) for actor in best)
        known[field.name] = next((value for value in told_values if value is not None), None)
    return Actor(**{**known, "source": naming.source})


class KnownActors:
    """What messages and witnessed sightings tell of transactions that are not sealed yet."""

    def __init__(self) -> None:
        self._messages: dict[int, bytes] = {}
        self._witnessed: dict[int, Actor] = {}

    def add_messages(self, messages: Iterable[tuple[int, bytes]]) -> None:
        """Take messages with the xids of their transactions, in order: the last one counts."""
        for xid, content in messages:
            self._messages[xid] = content[:TEXT_LIMIT]

    def add_sightings(self, journalled: bytes) -> None:
        """Take what a chunk of the journal has of sessions (FORMAT.md, section 5)."""
        if journalled:
            for sighting in json.loads(journalled):
                xid = sighting.pop("xid")
                self._witnessed[xid] = Actor("witness", **sighting)

    def sources(self, xids: Sequence[int], sampled: Mapping[int, Actor]) -> list[list[Actor]]:
        """What is known of each transaction's actor, the best source first."""
        return [
            [
                *([told(self._messages[xid])] if xid in self._messages else ()),
                *([self._witnessed[xid]] if xid in self._witnessed else ()),
                *([sampled[xid]] if xid in sampled else ()),
            ]
            for xid in xids
        ]

    def clear(self) -> None:
        self._messages.clear()
        self._witnessed.clear()
