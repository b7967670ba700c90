"""How answers look to a person. Each function prints one kind of answer on a rich console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from waly_cdc.cli.output import count, table
from waly_cdc.sizes import size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from waly_cdc.archive.compaction import Compacted
    from waly_cdc.capture.initialise import InitResult
    from waly_cdc.capture.sidecar import RunResult
    from waly_cdc.restore.result import RestoreResult
    from waly_cdc.upkeep.folding import Folded
    from waly_cdc.verify.report import Report

SEVERITY_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
OPERATION_STYLES = {"I": "green", "U": "yellow", "D": "red", "T": "bold red"}
OPERATION_NAMES = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}
STATE_STYLES = {"running": "green", "stopped": "yellow", "degraded": "bold red"}
CHANGE_STYLES = {"added": "green", "changed": "yellow", "removed": "red"}
CHANGE_MARKS = {"added": "+", "changed": "~", "removed": "-"}
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}
"""How control characters are shown, all but tab and newline."""
SHORT = 60
"""Characters of a value that are shown where space is short."""


def init_result(console: Console, result: InitResult) -> None:
    if not result.created:
        console.print(f"{result.archive} is there already, from {result.lsn} on")
        return
    rows = sum(rows for _, rows in result.tables)
    if result.gap is not None:
        console.print(
            f"era {result.era} of archive {result.archive} begins at {result.lsn}:"
            f" {count(len(result.tables), 'table')}, {count(rows, 'row')}, slot {result.slot}"
        )
        console.print(f"the gap after {result.era - 1}:{result.gap.start}: {result.gap.reason}")
        return
    console.print(
        f"archive {result.archive} begins at {result.lsn}: {count(len(result.tables), 'table')},"
        f" {count(rows, 'row')}, slot {result.slot}"
    )


def run_result(console: Console, result: RunResult) -> None:
    console.print(
        f"archived {count(result.transactions, 'transaction')} with"
        f" {count(result.events, 'event')}; the archive reaches to {result.horizon}"
    )


def compacted(console: Console, done: Compacted, folded: Sequence[Folded]) -> None:
    for each in folded:
        console.print(
            f"baseline of {each.relation.qualified_name} at {each.baseline.lsn}:"
            f" {count(each.baseline.rows, 'row')}"
        )
    if done.replaced:
        console.print(f"{count(done.replaced, 'file')} became {done.made:,}")
    else:
        console.print("nothing to compact")


def event(
    console: Console, found: Mapping[str, Any], *, oneline: bool, patch: bool, eras: bool
) -> None:
    """An event of the log, on one line or with what it changed; `patch` shows whole rows, `eras`
    names the era of its LSN."""
    from rich.text import Text

    style = OPERATION_STYLES[found["op"]]
    line = Text()
    line.append(f"{clock(found['committed_at'])}  ", style="dim")
    line.append(f"{OPERATION_NAMES[found['op']]:8} ", style=style)
    line.append(f"{found['table']} ", style="bold")
    line.append(key_text(found["key"]))
    if found["version"] is not None:
        line.append(f"  v{found['version']}", style="dim")
    line.append(f"  {actor_text(found['actor'])}", style="cyan")
    line.append(f"  xid {found['xid']}  {_lsn(found, eras)}", style="dim")
    if oneline:
        if found["changed"]:
            line.append("  " + ", ".join(found["changed"]), style=style)
        console.print(line)
        return
    console.print(line)
    if patch:
        _row(console, "-", found["before"], "red")
        _row(console, "+", found["after"], "green")
    elif found["changed"] is not None:
        for name, (old, new) in found["changed"].items():
            console.print(_change(name, old, new))
    else:
        _values(console, found["after"] or found["before"], style)
    if found["unknown"]:
        console.print(Text(f"    not known: {', '.join(found['unknown'])}", style="dim"))


def transaction(console: Console, found: Mapping[str, Any], *, eras: bool) -> None:
    """Who made a transaction, and how that is known."""
    actor = found["actor"]
    rows = [
        ("transaction", f"{found['xid']}, {count(found['events'], 'event')}"),
        ("committed", f"{found['committed_at']} at {_lsn(found, eras)}"),
        ("by", actor_text(actor)),
        ("known from", actor["source"]),
    ]
    rows += [
        (name, actor[field])
        for name, field in (
            ("address", "client_addr"),
            ("process", "pid"),
            ("query", "query"),
            ("context", "context"),
        )
        if actor[field] is not None
    ]
    for name, value in rows:
        console.print(_label(name, str(value)))


def row(console: Console, found: Mapping[str, Any], *, eras: bool) -> None:
    """A row as it was, and where that came from."""
    width = max(map(len, found["row"]), default=0)
    for name, value in found["row"].items():
        console.print(_label(name, value_text(value, None), width))
    console.print()
    console.print(_label("version", f"{found['version']}", width))
    console.print(_label("since", f"{found['committed_at']} at {_lsn(found, eras)}", width))
    by = f"{actor_text(found['actor'])}, xid {found['xid']}"
    before = "unknown: it was there when the archive began"
    console.print(_label("by", by if found["xid"] else before, width))


def blame(console: Console, found: Mapping[str, Any]) -> None:
    """Each column of a row, and the change that it got its value by."""
    from rich.text import Text

    line = Text(f"{found['table']} ", style="bold")
    line.append(key_text(found["key"]))
    line.append(f"  v{found['version']}", style="dim")
    console.print(line)
    columns = found["columns"]
    origins = {name: _origin(column) for name, column in columns.items()}
    width = max(map(len, columns), default=0)
    wide = max((len(origin.plain) for origin in origins.values()), default=0)
    for name, column in columns.items():
        origins[name].align("left", wide)
        value = value_text(column["value"], SHORT)
        console.print(Text.assemble(origins[name], "  ", (f"{name:{width}}", "bold"), f"  {value}"))


def _origin(column: Mapping[str, Any]) -> Text:
    """When a value was set, by whom and in which transaction."""
    from rich.text import Text

    if column["xid"] is None:
        return Text(f"{clock(column['committed_at'])}  there when the archive began", style="dim")
    return Text.assemble(
        (f"{clock(column['committed_at'])}  ", "dim"),
        (actor_text(column["actor"]), "cyan"),
        (f"  xid {column['xid']}", "dim"),
    )


def difference(console: Console, found: Mapping[str, Any]) -> None:
    """What differs in one row."""
    from rich.text import Text

    style = CHANGE_STYLES[found["change"]]
    line = Text(f"{CHANGE_MARKS[found['change']]} ", style=style)
    line.append(f"{found['table']} ", style="bold")
    line.append(key_text(found["key"]))
    console.print(line)
    if found["changed"] is not None:
        for name, (old, new) in found["changed"].items():
            console.print(_change(name, old, new))
    else:
        _values(console, found["after"] or found["before"], style)


def status(console: Console, found: Mapping[str, Any]) -> None:
    from rich.text import Text

    archive, slot, lag = found["archive"], found["slot"], found["lag"]
    console.print(
        Text.assemble(("state        ", "bold"), (found["state"], STATE_STYLES[found["state"]]))
    )
    for reason in found["reasons"]:
        console.print(Text(f"             {reason}", style="red"))
    behind = "unknown" if lag["bytes"] is None else size_text(lag["bytes"])
    seconds = "unknown" if lag["seconds"] is None else f"{lag['seconds']:.1f} s"
    shares = {name: number for name, number in found["attribution"].items() if number}
    total = sum(shares.values())
    known = ", ".join(f"{name} {100 * number / total:.1f} %" for name, number in shares.items())
    verified = found["last_verify"]
    retained = size_text(slot["retained_bytes"])
    if slot["safe_wal_size"] is not None:
        retained += f", {size_text(slot['safe_wal_size'])} before it is lost"
    for name, value in (
        ("archive", f"{archive['path']}, of database {archive['database']}"),
        ("horizon", f"{found['horizon']['lsn']}, {found['horizon']['time']}"),
        ("lag", f"{behind}, {seconds}"),
        ("slot", f"{slot['name']}, {slot['wal_status'] or slot['error']}; retains {retained}"),
        ("plugin", found["source"]["plugin"] or "unknown"),
        *(("", loss["message"]) for loss in found["source"]["losses"]),
        *(("gap", _gap_text(gap)) for gap in archive["gaps"] if gap["oid"] is None),
        ("contents", f"{archive['tables']:,} tables, {archive['transactions']:,} transactions"),
        ("", f"{archive['events']:,} events in {archive['segments']:,} segments"),
        ("size", size_text(archive["bytes"])),
        ("actors", known or "no transactions yet"),
        *(("", _contradiction(each)) for each in found["contradictions"]),
        ("verified", f"{verified['verified_at']}: {verified['result']}" if verified else "never"),
    ):
        console.print(_label(name, value, 11))


def _gap_text(gap: Mapping[str, Any]) -> str:
    """A gap between two eras."""
    era = gap["era"]
    return (
        f"from {era - 1}:{gap['from']} ({gap['from_time']}) to {era}:{gap['to']}"
        f" ({gap['to_time']}): {gap['reason']}"
    )


def restored(console: Console, result: RestoreResult) -> None:
    rows = [(name, f"{number:,}") for name, number in result.tables]
    table(console, ("table", "rows"), rows, right=(1,))
    total = sum(rows for _, rows in result.tables)
    console.print(
        f"restored {count(len(result.tables), 'table')}, {count(total, 'row')} as of {result.lsn}"
        f" into {result.target} in {result.seconds:.1f} s"
    )


def reverted(console: Console, found: Mapping[str, Any]) -> None:
    """What a revert does or did, and the rows in its way."""
    from rich.text import Text

    for conflict in found["conflicts"]:
        line = Text("conflict ", style="bold red")
        line.append(f"{conflict['table']} ", style="bold")
        line.append(key_text(conflict["key"]))
        line.append(f"  {conflict['reason']}", style="default")
        if conflict["xid"] is not None:
            line.append(f" by xid {conflict['xid']}", style="dim")
        console.print(line)
    names = ("table", "insert", "update", "delete")
    rows = [(each["table"], *(f"{each[n]:,}" for n in names[1:])) for each in found["tables"]]
    table(console, names, rows, right=(1, 2, 3))


def verified(console: Console, report: Report) -> None:
    from rich.text import Text

    for finding in report.findings:
        if finding.severity != "pass":
            line = Text(f"{finding.severity.upper()} ", style=SEVERITY_STYLES[finding.severity])
            line.append(f"{finding.subject}: {finding.message}", style="default")
            console.print(line)
    checked = report.checked
    console.print(
        f"checked {checked.files:,} files, {size_text(checked.bytes)}, {checked.rows:,} rows,"
        f" {checked.tables:,} tables up to {report.lsn}"
    )
    if report.drill is not None:
        rows = sum(rows for _, rows in report.drill.tables)
        console.print(
            f"restored and compared {len(report.drill.tables)} tables, {rows:,} rows;"
            f" the restore took {report.drill.restore_seconds:.1f} s"
        )
    style = "green" if report.result == "passed" else "bold red"
    console.print(Text(report.result.replace("_", " "), style=style))


def clock(time: str) -> str:
    """An RFC 3339 time as local time, to the millisecond."""
    moment = datetime.fromisoformat(time).astimezone()
    shown = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03}"
    return shown + moment.strftime("%z")[:3]


def _contradiction(found: Mapping[str, Any]) -> str:
    says, session = (value_text(found[name], SHORT) for name in ("says", "session"))
    return f"{found['transactions']:,} say {says} and ran in sessions of role {session}"


def actor_text(actor: Mapping[str, Any]) -> str:
    """An actor in few words."""
    if actor["source"] == "unknown":
        return "unknown"
    user = value_text(actor["user"] or "unknown", SHORT)
    reverted = _reverted(actor["context"])
    if reverted:
        user += f", reverting {value_text(reverted, SHORT)}"
    application = actor["application_name"]
    return f"{user} ({value_text(application, SHORT)})" if application else user


def _reverted(context: str | None) -> str:
    """The transactions that a transaction says it has undone."""
    try:
        told = json.loads(context or "null")["revert"]
        return ", ".join(f"xid {xid}" for xid in told["transactions"]) or "a row"
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def key_text(key: Mapping[str, Any] | None) -> str:
    if not key:
        return ""
    return " ".join(f"{name}={value_text(value, SHORT)}" for name, value in key.items())


def value_text(value: Any, limit: int | None) -> str:
    """A JSON value for people, cut at `limit` characters, with nothing that steers a terminal."""
    from waly_cdc.history.jsonb import Literal, dumps

    text = "NULL" if value is None else value if isinstance(value, str) else dumps(value)
    text = text.translate(_CONTROLS)
    if isinstance(value, str) and not isinstance(value, Literal) and limit is not None:
        text = text.replace("\n", "⏎")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def _lsn(found: Mapping[str, Any], eras: bool) -> str:
    """An LSN as it can be given back to us: with its era where there are several."""
    return f"{found['era']}:{found['lsn']}" if eras else str(found["lsn"])


def _row(console: Console, mark: str, found: Mapping[str, Any] | None, style: str) -> None:
    from rich.text import Text

    for name, value in (found or {}).items():
        console.print(Text(f"  {mark} {name}: {value_text(value, None)}", style=style))


def _values(console: Console, found: Mapping[str, Any] | None, style: str) -> None:
    from rich.text import Text

    if found:
        shown = ", ".join(f"{name}: {value_text(value, SHORT)}" for name, value in found.items())
        console.print(Text(f"    {shown}", style=style))


def _change(name: str, old: Any, new: Any) -> Text:
    from rich.text import Text

    return Text.assemble(
        f"    {name}: ", (value_text(old, SHORT), "red"), " → ", (value_text(new, SHORT), "green")
    )


def _label(name: str, value: str, width: int = 11) -> Text:
    from rich.text import Text

    return Text.assemble((f"{name:{width}}  ", "bold"), value)
