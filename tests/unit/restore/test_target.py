from __future__ import annotations

import pytest

from waly_cdc.restore.target import masked


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:hunter2@host:5433/db",
        "host=host port=5433 user=user dbname=db password=hunter2 sslpassword=hunter2",
    ],
)
def test_a_password_is_never_shown(dsn: str) -> None:
    shown = masked(dsn)
    assert "hunter2" not in shown
    assert {"host=host", "port=5433", "user=user", "dbname=db"} <= set(shown.split())


def test_what_libpq_cannot_read_is_not_shown_at_all() -> None:
    assert "hunter2" not in masked("postgresql://user:hunter2@[")
