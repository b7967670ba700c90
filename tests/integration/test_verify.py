from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from tests.conftest import TestServer
from tests.integration.sample import Sample
from waly_cdc.archive import layout
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.errors import CouldNotVerify, NoArchive
from waly_cdc.findings import Finding
from waly_cdc.history.moment import resolve
from waly_cdc.points import AtLsn, Latest
from waly_cdc.restore.plan import plan_restore
from waly_cdc.restore.postgres import restore_postgres
from waly_cdc.restore.rows import Rows
from waly_cdc.verify.compare import compare
from waly_cdc.verify.drill import drill
from waly_cdc.verify.integrity import verify_integrity
from waly_cdc.verify.report import Report


@pytest.fixture
def archive(sample: Sample, work_dir: Path) -> Path:
    """A copy of the sample's archive, to damage."""
    copy = work_dir / "archive"
    shutil.copytree(sample.archive, copy)
    return copy


def verify(archive: Path) -> Report:
    return verify_integrity(LocalStore(archive))


def failures(report: Report) -> list[tuple[str, str]]:
    return [(f.id, f.subject) for f in report.findings if f.severity == "fail"]


def segment(archive: Path, table: str, number: int = 0) -> Path:
    return sorted(archive.glob(f"events/public.{table}~*/*/*.parquet"))[number]


def last_entry(archive: Path) -> Path:
    return sorted(archive.glob("manifest/0*.json"))[-1]


def test_a_whole_archive_passes(sample: Sample) -> None:
    seen: list[tuple[int, int]] = []
    store = LocalStore(sample.archive)
    report = verify_integrity(store, progress=lambda done, total: seen.append((done, total)))
    contents = load(store)
    assert (report.result, report.exit_code, report.findings) == ("passed", 0, ())
    assert report.checked.files == len(contents.files)
    assert report.checked.rows == sum(file.rows for file in contents.files)
    assert report.lsn == contents.horizon
    assert seen[-1] == (report.checked.bytes, report.checked.bytes)


@pytest.mark.parametrize("folder", ["events", "transactions", "schema"])
def test_a_flipped_bit_is_found_in_any_file(archive: Path, folder: str) -> None:
    path = sorted(p for p in (archive / folder).rglob("*") if p.is_file())[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = verify(archive)
    assert report.exit_code == 4
    assert failures(report) == [("file.sha256", path.relative_to(archive).as_posix())]


def test_a_missing_file_is_found(archive: Path) -> None:
    path = segment(archive, "docs")
    path.unlink()
    assert failures(verify(archive)) == [("file.missing", path.relative_to(archive).as_posix())]


def test_a_file_that_is_cut_off_is_found(archive: Path) -> None:
    path = segment(archive, "docs")
    path.write_bytes(path.read_bytes()[:-100])
    assert failures(verify(archive)) == [("file.size", path.relative_to(archive).as_posix())]


def test_two_files_that_were_swapped_are_found(archive: Path) -> None:
    one, two = segment(archive, "docs", 0), segment(archive, "docs", 1)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    found = {subject for _, subject in failures(verify(archive))}
    assert found == {path.relative_to(archive).as_posix() for path in (one, two)}


def test_an_edited_entry_is_found(archive: Path) -> None:
    path = archive / layout.entry_path(2)
    data = json.loads(path.read_bytes())
    data["horizon_time"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")
    assert ("manifest.chain", layout.entry_path(3)) in failures(verify(archive))


def test_a_missing_entry_is_found(archive: Path) -> None:
    (archive / layout.entry_path(2)).unlink()
    assert ("file.missing", layout.entry_path(2)) in failures(verify(archive))


def test_an_entry_that_is_no_json_is_found(archive: Path) -> None:
    last_entry(archive).write_text("{")
    report = verify(archive)
    name = last_entry(archive).relative_to(archive).as_posix()
    assert ("manifest.entry", name) in failures(report)


def test_a_last_entry_that_was_removed_is_found(archive: Path) -> None:
    last_entry(archive).unlink()
    report = verify(archive)
    assert report.exit_code == 4
    assert "manifest.end" in {kind for kind, _ in failures(report)}


def test_a_file_that_no_entry_names_is_reported_and_no_failure(archive: Path) -> None:
    (archive / "events" / "extra.parquet").write_bytes(b"?")
    report = verify(archive)
    assert report.result == "passed"
    assert [(f.id, f.subject) for f in report.findings] == [
        ("file.unnamed", "events/extra.parquet")
    ]


def rehash(archive: Path, change: Callable[[dict[str, object]], None], number: int) -> None:
    """Change an entry as a forger would who mends the chain after it."""
    from waly_cdc.archive.manifest import digest

    path = archive / layout.entry_path(number)
    data = json.loads(path.read_bytes())
    change(data)
    while True:
        content = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        path.write_bytes(content)
        number += 1
        path = archive / layout.entry_path(number)
        if not path.exists():
            return
        data = json.loads(path.read_bytes())
        data["previous"] = digest(content)


def test_an_event_file_that_stands_twice_is_found_by_its_positions(archive: Path) -> None:
    original = segment(archive, "bag", 1)
    path = original.relative_to(archive).as_posix()
    copy = path.replace("-v1.parquet", "-v1-copy.parquet")
    shutil.copy(original, archive / copy)
    number = next(n for n in range(100) if path in (archive / layout.entry_path(n)).read_text())

    def add_copy(data: dict[str, object]) -> None:
        files = data["files"]
        assert isinstance(files, list)
        (mine,) = [file for file in files if file["path"] == path]
        files.append({**mine, "path": copy})
        data["events"] = int(str(data["events"])) + int(mine["rows"])

    rehash(archive, add_copy, number)
    kinds = {kind for kind, _ in failures(verify(archive))}
    assert {"events.position", "transactions.events"} <= kinds


def test_a_rewritten_value_is_not_hidden_by_a_rewritten_manifest_alone(archive: Path) -> None:
    """Rows that are dropped from a file whose hash and size are mended in the manifest."""
    from waly_cdc.archive.manifest import digest

    original = segment(archive, "bag", 1)
    path = original.relative_to(archive).as_posix()
    table = pq.read_table(original, partitioning=None)
    pq.write_table(table.slice(0, len(table) - 1), original, compression="zstd")
    number = next(n for n in range(100) if path in (archive / layout.entry_path(n)).read_text())

    def mend(data: dict[str, object]) -> None:
        files = data["files"]
        assert isinstance(files, list)
        for file in files:
            if file["path"] == path:
                content = original.read_bytes()
                file["sha256"], file["bytes"] = digest(content), len(content)

    rehash(archive, mend, number)
    assert ("file.facts", path) in failures(verify(archive))


def test_no_archive_and_no_permission_are_not_a_mismatch(work_dir: Path) -> None:
    with pytest.raises(NoArchive):
        verify(work_dir / "nothing")


def test_a_drill_restores_and_compares_every_table(sample: Sample, server: TestServer) -> None:
    store = LocalStore(sample.archive)
    contents = load(store)
    report = drill(store, contents, resolve(contents, store, Latest()), server.admin_dsn)
    assert (report.result, failures(report)) == ("passed", [])
    assert report.drill is not None
    photo = sample.photos["latest"].rows
    assert dict(report.drill.tables) == {_quoted(name): len(rows) for name, rows in photo.items()}
    assert report.checked.tables == len(photo)
    with psycopg.connect(server.admin_dsn) as admin:
        left = admin.execute("select datname from pg_database where datname like 'waly_drill%'")
        assert left.fetchall() == []


def _quoted(name: str) -> str:
    return (
        name
        if name.startswith("public.")
        else '"Weird Name".' + ('"Täble.x"' if name.endswith("x") else "child")
    )


def test_a_drill_without_a_server_of_ours_starts_one(sample: Sample) -> None:
    store = LocalStore(sample.archive)
    contents = load(store)
    moment = resolve(contents, store, AtLsn(sample.photos["traps"].lsn))
    report = drill(store, contents, moment)
    assert report.result == "passed"
    assert report.lsn == sample.photos["traps"].lsn


def test_a_drill_that_cannot_run_is_neither_passed_nor_failed(sample: Sample) -> None:
    store = LocalStore(sample.archive)
    contents = load(store)
    moment = resolve(contents, store, Latest())
    with pytest.raises(CouldNotVerify, match="scratch server") as caught:
        drill(store, contents, moment, "host=127.0.0.1 port=1 password=hunter2")
    assert "hunter2" not in caught.value.message
    report = verify(sample.archive).without("drill", caught.value.message)
    assert (report.result, report.exit_code) == ("could_not_verify", 5)


def test_a_constraint_that_the_rows_break_is_left_out_and_leaves_a_drill_undecided(
    database: str, server: TestServer, work_dir: Path
) -> None:
    """Constraints that were dropped: the next schema dump tells of that, which is from later."""
    settings = CaptureSettings(database, work_dir / "archive", sample_interval=0)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table p (id int primary key, n int not null, check (n > 0))")
        connection.execute("create table f (id int primary key, p int references p)")
        initialise(settings)
        connection.execute("alter table p drop constraint p_n_check, alter n drop not null")
        connection.execute("alter table f drop constraint f_p_fkey")
        connection.execute("insert into p values (1, -1), (2, null)")
        connection.execute("insert into f values (1, 9)")
        connection.execute("insert into p values (3, 3)")
    run(settings, once=True)
    store = LocalStore(settings.archive)
    contents = load(store)
    latest = resolve(contents, store, Latest())
    assert drill(store, contents, latest, server.admin_dsn).result == "passed"
    assert latest.before is not None
    earlier = resolve(contents, store, AtLsn(latest.before.lsn))
    report = drill(store, contents, earlier, server.admin_dsn)
    assert (report.result, report.exit_code) == ("could_not_verify", 5)
    assert report.drill is not None
    assert report.drill.tables == (("public.f", 1), ("public.p", 2))
    broken = [finding.message.split(": the rows do not")[0] for finding in report.findings]
    assert broken == [
        "fk constraint public.f f_p_fkey",
        'constraint "public"."p" p_n_check',
        'constraint "public"."p" not null of n',
    ]


@pytest.mark.parametrize(
    ("tampering", "expected"),
    [
        ("update public.docs set title = 'other' where id = 'after'", "differs in title"),
        ("delete from public.one_text where v = ''", "in the archive, and not in the database"),
        (
            "insert into public.bag values (99, 'NaN', null, null)",
            "in the database, and not in the archive",
        ),
        ("update public.types set a_double = '0' where id = 3", "differs in a_double"),
        ("update public.types set a_tstz = a_tstz + '1 us' where id = 1", "differs in a_tstz"),
        ("delete from public.no_columns", "3"),
        ("drop table public.no_rows", "not in the database"),
        ("alter table public.no_rows rename t to u", "columns id, u"),
    ],
)
def test_a_comparison_finds_what_is_not_as_archived(
    sample: Sample, database: str, tampering: str, expected: str
) -> None:
    store = LocalStore(sample.archive)
    contents = load(store)
    moment = resolve(contents, store, AtLsn(sample.photos["truncated"].lsn))
    table = tampering.split("public.")[1].split()[0].strip('"')
    plan = plan_restore(store, contents, moment, [table])
    with Rows(store, contents) as rows:
        restore_postgres(rows, plan, database)
        assert compare(rows, plan, database)[0] == []
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(tampering.encode())
        findings: list[Finding] = compare(rows, plan, database)[0]
    assert any(expected in finding.message for finding in findings), findings
    assert all(finding.subject.startswith(f"public.{table}") for finding in findings)
