"""Django: the user of a request is the actor of its transactions.

    MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware",
                  "waly_cdc.context.django.ActorMiddleware"]

It names the user, the request (`X-Request-ID`, where there is one) and as operation the method and
the path. Outside of requests (commands, tasks) call `listen` once and use `acting`.

A transaction is told with its first statement that changes something; a single one outside of
`atomic` is put into it. Statements that begin with SELECT and change something all the same (a
function's call) are not recognised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from waly_cdc.context import STATEMENT, acting, is_named, message

_TELL = STATEMENT.format("%s")
_CHANGING = ("insert", "update", "delete", "merge", "truncate", "with", "copy", "call", "do")


class ActorMiddleware:
    """Names the user of each request as who acts. For sync and async views."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        listen()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._answer(request)
        with _acting(request):
            response: HttpResponse = self._get_response(request)
            return response

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        with _acting(request):
            response: HttpResponse = await self._get_response(request)
            return response


def listen() -> None:
    """Have the transactions of all PostgreSQL connections say who acts."""
    connection_created.connect(_created, dispatch_uid="waly_cdc.context")
    for connection in connections.all(initialized_only=True):
        _created(connection)


def _created(sender: object, connection: BaseDatabaseWrapper | None = None, **_: object) -> None:
    wrapper = connection or sender
    if not isinstance(wrapper, BaseDatabaseWrapper) or wrapper.vendor != "postgresql":
        return
    if _execute not in wrapper.execute_wrappers:
        wrapper.execute_wrappers.append(_execute)


def _acting(request: HttpRequest) -> Any:
    def user() -> str | None:
        found = getattr(request, "user", None)
        return found.get_username() if found is not None and found.is_authenticated else None

    return acting(
        user,
        request=request.headers.get("X-Request-ID"),
        operation=f"{request.method} {request.path}",
    )


def _execute(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    connection: BaseDatabaseWrapper = context["connection"]
    if not is_named() or _is_told(connection) or not _changes(sql):
        return execute(sql, params, many, context)
    if not connection.in_atomic_block and connection.get_autocommit():
        with transaction.atomic(using=connection.alias):
            return _execute(execute, sql, params, many, context)
    done = execute(sql, params, many, context)
    if told := message():
        with connection.cursor() as cursor:
            cursor.execute(_TELL, (told,))
        # Forgotten where the savepoint or the transaction that holds the message is rolled back.
        transaction.on_commit(_told, using=connection.alias)
    return done


def _changes(sql: Any) -> bool:
    return str(sql).lstrip(" \t\r\n(")[:9].lower().startswith(_CHANGING)


def _is_told(connection: BaseDatabaseWrapper) -> bool:
    return any(each[1] is _told for each in connection.run_on_commit)


def _told() -> None:
    """Marks a transaction that has said who acts."""
