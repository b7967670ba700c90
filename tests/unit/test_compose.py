"""docker-compose.yml, Dockerfile and the scripts in docker/, as far as they can be tried without an
engine: no test here starts a container."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from compose_spec import PyOptions, parse_duration

from waly_cdc.cli.main import cli

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
ENTRYPOINT = DOCKER / "entrypoint.sh"
NIGHTLY = DOCKER / "verify-nightly.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "docker-compose.yml").read_text()

_VARIABLE = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")
_VERSIONED = re.compile(r"[a-z-]+:\d+(\.\d+)*([.-][a-z0-9]+)*")
_CLOCK_START = "2026-11-24T02:58:30Z"
_PASSWORD = "it's:a\\pass word"


def _services() -> dict[str, dict[str, Any]]:
    """The services, with all variables at their defaults and merge keys resolved.

    The parser refuses what the compose specification does not know, and values of a wrong type.
    """
    compose = PyOptions(apply_merge=True).from_yaml(_VARIABLE.sub(r"\1", COMPOSE))
    compose.validate()
    compose.to_spec()
    services = compose.to_dict()["services"]
    assert isinstance(services, dict)
    return services


SERVICES = _services()
OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}


def test_the_services_are_the_database_the_sidecar_and_the_verifier() -> None:
    assert set(SERVICES) == {"postgres", "waly", "verify"}


def test_an_unknown_key_would_be_refused() -> None:
    wrong = _VARIABLE.sub(r"\1", COMPOSE).replace("    restart:", "    restrat:")
    with pytest.raises(ValueError, match="restrat"):
        PyOptions(apply_merge=True).from_yaml(wrong)


def test_variables_have_defaults() -> None:
    assert "$" not in _VARIABLE.sub("", COMPOSE)


@pytest.mark.parametrize("name", SERVICES)
def test_images_carry_version_tags(name: str) -> None:
    assert _VERSIONED.fullmatch(SERVICES[name]["image"])


def test_our_image_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {service["image"] for service in OURS.values()} == {f"waly-cdc:{project['version']}"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_come_back_and_say_whether_they_are_well(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    healthcheck = service["healthcheck"]
    assert healthcheck["test"][0] == "CMD"
    assert parse_duration(healthcheck["timeout"]) <= parse_duration(healthcheck["interval"])
    assert parse_duration(service["stop_grace_period"]) >= 30


@pytest.mark.parametrize("name", OURS)
def test_our_services_have_no_more_rights_than_they_need(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "user", "pid", "ports"} & set(service)
    assert service["init"] is True
    # Everything that is written to under a read-only root: volumes of its own, and /tmp.
    assert {volume.split(":")[0] for volume in service["volumes"]} <= {
        *("archive", "reports", "scratch")
    }
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


def test_the_verifier_has_neither_network_nor_secrets() -> None:
    assert SERVICES["verify"]["network_mode"] == "none"
    assert "secrets" not in SERVICES["verify"]
    assert "WALY_DSN" not in SERVICES["verify"]["environment"]


def test_sidecar_and_verifier_share_the_archive() -> None:
    for service in OURS.values():
        assert "archive:/archive" in service["volumes"]
        assert service["environment"]["WALY_ARCHIVE"] == "/archive"


def test_no_secret_stands_in_it() -> None:
    for service in SERVICES.values():
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable:
                assert variable.endswith(("_FILE", "_FOR"))
            if variable.endswith("_FILE"):
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    # user:password@host, and password=… in a connection string.
    assert not re.search(r"://[^/\s@]*:[^/\s@]*@", COMPOSE)
    assert not re.search(r"\bpassword\s*=", COMPOSE, re.IGNORECASE)


def test_the_password_is_for_the_server_of_the_connection_string() -> None:
    environment = SERVICES["waly"]["environment"]
    user, host, port = re.fullmatch(
        r"postgresql://(\w+)@(\w+):(\d+)/\w+", environment["WALY_DSN"]
    ).groups()
    assert environment["WALY_PASSWORD_FOR"] == f"{host}:{port}:*:{user}"
    assert host in SERVICES
    assert SERVICES["waly"]["depends_on"] == {host: {"condition": "service_healthy"}}


def test_secrets_are_files_that_git_ignores_and_that_have_an_example() -> None:
    for path in re.findall(r"file: \./(\S+)", COMPOSE):
        assert _ignored(path)
        assert not _ignored(path + ".example")
        assert (ROOT / f"{path}.example").read_text().strip()
        assert f"`{Path(path).name}`" in (DOCKER / "secrets" / "README.md").read_text()


def _ignored(path: str) -> bool:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    return done.returncode == 0


def test_what_is_mounted_is_there() -> None:
    mounts = [volume for service in SERVICES.values() for volume in service["volumes"]]
    files = [mount.split(":") for mount in mounts if mount.startswith(".")]
    assert files
    for source, _, mode in files:
        assert (ROOT / source).is_file()
        assert mode == "ro"


def test_the_server_can_do_logical_replication_and_keeps_no_endless_log() -> None:
    settings = SERVICES["postgres"]["command"][2::2]
    assert "wal_level=logical" in settings
    assert "max_slot_wal_keep_size=16GB" in settings


def _assert_known(arguments: list[str]) -> None:
    """That `waly` has this command with these options."""
    verb, *rest = arguments
    context = click.Context(cli)
    command = cli.get_command(context, verb)
    assert command is not None, f"waly {verb}"
    known = {name for parameter in command.params for name in parameter.opts}
    for option in rest:
        assert not option.startswith("-") or option in known, f"waly {verb} {option}"


def test_commands_and_options_are_those_that_waly_has() -> None:
    waly, verify = SERVICES["waly"], SERVICES["verify"]
    assert waly["entrypoint"] == ["waly-entrypoint"]
    _assert_known(waly["command"])
    assert waly["healthcheck"]["test"][:2] == ["CMD", "waly"]
    _assert_known(waly["healthcheck"]["test"][2:])
    assert verify["entrypoint"] == ["verify-nightly"]
    assert "run waly verify" in NIGHTLY.read_text()
    _assert_known(["verify", "--report", *verify["command"]])


def test_programs_are_in_the_image() -> None:
    for script, program in ((ENTRYPOINT, "waly-entrypoint"), (NIGHTLY, "verify-nightly")):
        source = script.relative_to(ROOT)
        assert f"COPY --chmod=0755 {source} /usr/local/bin/{program}\n" in DOCKERFILE
        assert f"!{source}\n" in (ROOT / ".dockerignore").read_text()


def test_the_image_is_made_of_what_is_there_and_runs_without_root() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert f"!{source}\n" in (ROOT / ".dockerignore").read_text()
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["waly"]' in DOCKERFILE
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert _VERSIONED.fullmatch(image)


@pytest.mark.parametrize("subset", ["runtime.txt", "build.txt"])
def test_the_image_installs_what_was_tested(subset: str) -> None:
    locked = _requirements("lock.txt")
    chosen = _requirements(subset)
    assert chosen
    for requirement, hashes in chosen.items():
        pinned = {name.split(" ;")[0]: found for name, found in locked.items()}
        assert pinned[requirement.split(" ;")[0]] == hashes


def test_the_image_has_every_dependency_and_the_embedded_server() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["embedded"]]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted}
    assert names <= {requirement.split("==")[0] for requirement in _requirements("runtime.txt")}


def _requirements(name: str) -> dict[str, set[str]]:
    """Each pinned requirement with its hashes."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line and line[0] not in " #":
            hashes = found.setdefault(line.removesuffix(" \\"), set())
        elif "--hash=" in line:
            hashes.add(line.strip().removesuffix(" \\"))
    return found


# The scripts


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.stem)
def test_scripts_are_well_formed(script: Path, shell: str) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def _program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder first on PATH, in which tests put programs of their own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def _environment(programs: Path, **variables: object) -> dict[str, str]:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, **{name: str(value) for name, value in variables.items()}}


class TestEntrypoint:
    """docker/entrypoint.sh before a `waly` that says how it was called."""

    @pytest.fixture
    def waly(self, programs: Path, tmp_path: Path) -> Path:
        _program(
            programs,
            "waly",
            f'{sys.executable} -c "import json, os, sys;'
            " json.dump([sys.argv[1:], dict(os.environ)],"
            f" open('{tmp_path}/called', 'w'))\" \"$@\"; exit 42",
        )
        return tmp_path / "called"

    def _run(
        self, programs: Path, *arguments: str, **variables: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(ENTRYPOINT), *arguments],
            env=_environment(programs, **variables),
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.fixture
    def secret(self, tmp_path: Path) -> dict[str, object]:
        (tmp_path / "secret").write_text(_PASSWORD + "\n")
        return {
            "WALY_PASSWORD_FILE": tmp_path / "secret",
            "WALY_PASSWORD_FOR": "postgres:5432:*:waly",
            "PGPASSFILE": tmp_path / "pgpass",
        }

    def test_the_secret_becomes_a_passfile_that_libpq_accepts(
        self, programs: Path, waly: Path, secret: Mapping[str, object], tmp_path: Path
    ) -> None:
        passfile = tmp_path / "pgpass"
        passfile.write_text("left over")
        passfile.chmod(0o644)
        done = self._run(programs, "run", "--init", "--x=a b", **secret)
        assert done.returncode == 42
        assert passfile.read_text() == "postgres:5432:*:waly:it's\\:a\\\\pass word\n"
        assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
        arguments, _ = json.loads(waly.read_text())
        assert arguments == ["run", "--init", "--x=a b"]

    def test_the_password_is_in_no_argument_no_environment_and_no_output(
        self, programs: Path, waly: Path, secret: Mapping[str, object], tmp_path: Path
    ) -> None:
        # sed is the one other program that has to do with it.
        _program(programs, "sed", f'echo "$*" >>{tmp_path}/arguments; exec /bin/sed "$@"')
        _program(programs, "cat", f'echo "$*" >>{tmp_path}/arguments; exec /bin/cat "$@"')
        done = self._run(programs, "run", **secret)
        arguments = (tmp_path / "arguments").read_text()
        assert len(arguments.splitlines()) == 2
        for text in (arguments, waly.read_text(), done.stdout, done.stderr):
            assert "pass word" not in text

    def test_without_a_secret_it_is_just_waly(
        self, programs: Path, waly: Path, tmp_path: Path
    ) -> None:
        done = self._run(programs, "version", PGPASSFILE=tmp_path / "pgpass")
        assert done.returncode == 42
        assert not (tmp_path / "pgpass").exists()
        assert json.loads(waly.read_text())[0] == ["version"]

    @pytest.mark.parametrize(
        ("content", "said"),
        [(None, "cannot be read"), ("\n", "is empty"), ("two\nlines\n", "has several lines")],
    )
    def test_a_secret_that_is_none_is_an_error(
        self,
        programs: Path,
        waly: Path,
        secret: Mapping[str, object],
        tmp_path: Path,
        content: str | None,
        said: str,
    ) -> None:
        (tmp_path / "secret").unlink()
        if content is not None:
            (tmp_path / "secret").write_text(content)
        done = self._run(programs, "run", **secret)
        assert done.returncode == 2
        assert said in done.stderr
        assert "hint: " in done.stderr
        assert not waly.exists()


class TestNightly:
    """docker/verify-nightly.sh with a clock that sleeping sets forward."""

    @pytest.fixture
    def environment(self, programs: Path, tmp_path: Path) -> dict[str, str]:
        clock = tmp_path / "clock"
        started = subprocess.check_output(["date", "-u", "-d", _CLOCK_START, "+%s"], text=True)
        clock.write_text(started)
        _program(
            programs,
            "date",
            f'case "$*" in "-u +%s") cat {clock} ;; *) exec /bin/date "$@" ;; esac',
        )
        _program(programs, "sleep", f'now=$(cat {clock}); echo "$((now + $1))" >{clock}')
        for folder in ("reports", "scratch"):
            (tmp_path / folder).mkdir()
        return _environment(
            programs, VERIFY_REPORTS=tmp_path / "reports", VERIFY_SCRATCH=tmp_path / "scratch"
        )

    def _night(
        self, environment: Mapping[str, str], programs: Path, tmp_path: Path, body: str
    ) -> tuple[int, list[str], str]:
        """Until the first verification has come to the end of `body`. Then the script is told to
        stop: its exit code, what `waly` was called with and at what time, and stderr."""
        calls = tmp_path / "calls"
        _program(
            programs,
            "waly",
            f'echo "$(/bin/date -u -d "@$(cat {tmp_path}/clock)" +%FT%TZ) $*" >>{calls}; {body}',
        )
        with subprocess.Popen(
            ["sh", str(NIGHTLY), "--drill"], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            deadline = time.monotonic() + 60
            while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        return process.returncode, calls.read_text().splitlines(), said

    def test_verifies_at_the_hour_with_a_drill_and_a_report(
        self, environment: dict[str, str], programs: Path, tmp_path: Path
    ) -> None:
        left_over = tmp_path / "scratch" / "waly-pg-left-over" / "data"
        left_over.mkdir(parents=True)
        (left_over / "file").touch()
        body = f'echo "$TMPDIR" >{tmp_path}/ready; exec /bin/sleep 60'
        code, calls, said = self._night(environment, programs, tmp_path, body)
        assert code == 0
        reports = tmp_path / "reports"
        assert calls == [f"2026-11-24T03:00:00Z verify --drill --report {reports}"]
        assert "next verification: 2026-11-24T03:00Z" in said
        assert (tmp_path / "ready").read_text().strip() == str(tmp_path / "scratch")
        assert list((tmp_path / "scratch").iterdir()) == []

    def test_a_mismatch_is_kept_for_the_healthcheck_and_the_next_night_comes(
        self, environment: dict[str, str], programs: Path, tmp_path: Path
    ) -> None:
        environment["VERIFY_AT"] = "03:01"
        # Slow enough that the second night is not reached before the test looks.
        _program(
            programs,
            "sleep",
            f"[ -e {tmp_path}/reports/last-exit ] && touch {tmp_path}/ready;"
            f' now=$(cat {tmp_path}/clock); echo "$((now + $1))" >{tmp_path}/clock;'
            " exec /bin/sleep 0.05",
        )
        code, calls, said = self._night(environment, programs, tmp_path, "exit 4")
        assert code == 0
        assert [call.split()[0] for call in calls] == ["2026-11-24T03:01:00Z"]
        assert "verification ended with exit code 4" in said
        assert "next verification: 2026-11-25T03:01Z" in said
        assert (tmp_path / "reports" / "last-exit").read_text() == "4\n"

    @pytest.mark.parametrize("at", ["3:00", "24:00", "03:60", "noon", "03:00:00", "08:0x"])
    def test_a_time_that_is_none_is_an_error(self, environment: dict[str, str], at: str) -> None:
        done = subprocess.run(
            ["sh", str(NIGHTLY)],
            env={**environment, "VERIFY_AT": at},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert at in done.stderr
        assert "hint: " in done.stderr

    @pytest.mark.parametrize(
        ("last", "hours_ago", "healthy"),
        [(None, 0, True), ("0", 1, True), ("4", 1, False), ("5", 1, False), ("0", 27, False)],
    )
    def test_it_is_healthy_while_the_last_night_was_good_and_not_long_ago(
        self, tmp_path: Path, last: str | None, hours_ago: int, healthy: bool
    ) -> None:
        if last is not None:
            path = tmp_path / "last-exit"
            path.write_text(last + "\n")
            then = time.time() - hours_ago * 3600
            os.utime(path, (then, then))
        done = subprocess.run(
            ["sh", str(NIGHTLY), "--healthy"],
            env={"PATH": os.environ["PATH"], "VERIFY_REPORTS": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is healthy
        assert bool(done.stderr) is not healthy
