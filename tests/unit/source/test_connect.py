import psycopg
import pytest
from psycopg import conninfo as libpq

from waly_cdc.errors import SourceError, SourceLost
from waly_cdc.source.connect import connect, conninfo, source_error, source_errors

SECRET = "pass"


def test_defaults_give_way_to_what_the_connection_string_says() -> None:
    given = libpq.conninfo_to_dict(conninfo("host=db connect_timeout=77"))
    assert given["connect_timeout"] == "77"
    assert given["tcp_user_timeout"] == "60000"
    assert given["host"] == "db"


def test_defaults_give_way_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "77")
    assert "connect_timeout" not in libpq.conninfo_to_dict(conninfo(""))


def test_overrides_win() -> None:
    assert libpq.conninfo_to_dict(conninfo("dbname=a", dbname="b"))["dbname"] == "b"


@pytest.mark.parametrize(
    "dsn",
    [
        "host='",
        "host=db password=a pass word",
        "postgresql://user:p@ss@pass/db",
        "postgresql://user:pass/word@db/x",
        "postgresql://user:pass%zz@db/x",
        "postgresql://user:a?pass=b@db/x",
        "port=pass",
    ],
)
def test_an_unreadable_connection_string_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(SourceError) as caught:
        connect(dsn)
    error = caught.value
    assert error.hint
    assert SECRET not in error.message.replace("password", "")
    assert error.__cause__ is None or SECRET not in str(error.__cause__)


def test_a_socket_in_the_abstract_namespace_is_a_host() -> None:
    assert "host=@waly" in conninfo("host=@waly")


def test_a_refused_connection_may_be_tried_again() -> None:
    with pytest.raises(SourceLost, match="Connection refused") as caught:
        connect("host=127.0.0.1 port=1 user=nobody connect_timeout=2")
    assert "host and port" in (caught.value.hint or "")
    assert caught.value.exit_code == 12


@pytest.mark.parametrize(
    ("text", "kind", "hint"),
    [
        ('FATAL:  password authentication failed for user "x"', SourceError,
         "is the password right?"),
        ("fe_sendauth: no password supplied", SourceError, "set the password"),
        ('FATAL:  database "x" does not exist', SourceError, "names"),
        ('FATAL:  no pg_hba.conf entry for host "x"', SourceError, "pg_hba.conf"),
        ("FATAL:  must be superuser or replication role to start walsender", SourceError, "ROLE"),
        ("FATAL:  permission denied to start WAL sender", SourceError, "REPLICATION"),
        ("FATAL:  sorry, too many clients already", SourceLost, "max_connections"),
        ("FATAL:  number of requested standby connections exceeds max_wal_senders (currently 1)",
         SourceLost, "max_wal_senders"),
        ("FATAL:  the database system is starting up", SourceLost, "try again"),
        ("server closed the connection unexpectedly", SourceLost, "try again"),
        ("connection timeout expired", SourceLost, "firewall"),
    ],
)  # fmt: skip
def test_connection_failures_by_text(text: str, kind: type[SourceError], hint: str) -> None:
    error = source_error(psycopg.OperationalError(f"connection failed: {text}\n\tguess"))
    assert type(error) is kind
    assert error.message == f"PostgreSQL: {text}"
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("cause", "kind", "hint"),
    [
        (psycopg.errors.AdminShutdown("bye"), SourceLost, "try again"),
        (psycopg.errors.ObjectInUse("slot"), SourceError, "another process"),
        (psycopg.errors.DuplicateObject("slot"), SourceError, "waly slot"),
        (psycopg.errors.ConfigurationLimitExceeded("all replication slots are in use"),
         SourceError, "max_replication_slots"),
        (psycopg.errors.ObjectNotInPrerequisiteState("needs wal_level >= logical"), SourceError,
         "ALTER SYSTEM"),
        (psycopg.errors.InsufficientPrivilege("permission denied to use replication slots"),
         SourceError, "REPLICATION"),
        (psycopg.errors.InsufficientPrivilege("permission denied for table t"),
         SourceError, "check --fix-sql"),
        (psycopg.errors.LockNotAvailable("lock timeout"), SourceLost, "pg_blocking_pids"),
    ],
)  # fmt: skip
def test_server_errors_by_state(cause: psycopg.Error, kind: type[SourceError], hint: str) -> None:
    error = source_error(cause)
    assert type(error) is kind
    assert hint in (error.hint or "")


def test_only_errors_of_psycopg_are_turned() -> None:
    with pytest.raises(ValueError, match="mine"), source_errors():
        raise ValueError("mine")
    with pytest.raises(SourceError), source_errors():
        raise psycopg.DataError("theirs")
