"""Who acts: for applications, whose transactions then say so in the archive (docs/who.md).

    with acting("carol", request="7f3a", operation="refund"):
        ...  # every transaction that changes something names carol

It holds for the thread or task that enters it, and those started inside. The helpers for psycopg,
SQLAlchemy and Django put one message into each transaction, right before it commits, if it has
changed something; without one of them, run `STATEMENT` with `message()` in the transaction.

This package imports nothing but the standard library until a helper is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LIMIT = 16_000
"""Bytes that a message has at most: what is longer keeps the actor alone."""

NAME_CHARACTERS = 1_000

STATEMENT = (
    "SELECT pg_catalog.pg_logical_emit_message(true, 'waly', {}::text)"
    " WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
)
"""Puts the message into the transaction, if that has changed something. `{}` is the parameter, in
the driver's own style."""

Actor = str | Callable[[], str | None] | None

_context: ContextVar[dict[str, Any] | None] = ContextVar("waly_context", default=None)


@contextmanager
def acting(
    actor: Actor = None,
    *,
    request: str | None = None,
    operation: str | None = None,
    **more: Any,
) -> Iterator[None]:
    """Name who acts, and for what. `actor` may be a function, which is asked when a transaction is
    about to say so. `more` is anything that JSON can hold. What an inner one leaves out holds from
    the outer one."""
    given = {"actor": actor, "request": request, "operation": operation, **more}
    inner = {name: value for name, value in given.items() if value is not None}
    token = _context.set({**(_context.get() or {}), **inner})
    try:
        yield
    finally:
        _context.reset(token)


def is_named() -> bool:
    """Whether anybody acts."""
    return bool(_context.get())


def message() -> str | None:
    """What a transaction says now, as JSON in ASCII; None where nobody acts. Raises nothing."""
    context = _context.get()
    if not context:
        return None
    actor = _name(context.get("actor"))
    told = {**context, "actor": actor} if actor is not None else dict(context, actor=None)
    try:
        text = json.dumps(told, default=str)
    except Exception:
        # A value that cannot be shown must not cost the transaction, nor its actor.
        text = ""
    if text and len(text) <= LIMIT:
        return text
    return json.dumps({"actor": actor, "shortened": True})


def _name(actor: Actor) -> str | None:
    try:
        name = actor() if callable(actor) else actor
        return None if name is None else str(name)[:NAME_CHARACTERS]
    except Exception:
        # Asking must not cost the transaction.
        return None
