"""`waly check`"""

import click
from rich.console import Console
from rich.text import Text

from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import SEVERITY_STYLES
from waly_cdc.plugins import PGOUTPUT, WAL2JSON


@click.command("check")
@click.option("--fix-sql", is_flag=True, help="Print only a psql script that mends what was found.")
@click.option("--slot", metavar="NAME", help="Slot (default: named after the database).")
@click.option(
    "--plugin",
    type=click.Choice([PGOUTPUT, WAL2JSON]),
    help="Output plugin (default: that of the slot, else pgoutput).",
)
@global_options
@pass_state
def command(state: State, fix_sql: bool, slot: str | None, plugin: str | None) -> int:
    """Look whether server, role, tables and archive are ready for capture.

    Only reads; runs nothing that changes anything. Exit code 6 for a blocking problem.

    --fix-sql prints what a superuser runs with psql: statements that capture needs, and in comments
    those that are a matter of choice.
    """
    from waly_cdc.findings import FAIL, worst
    from waly_cdc.source import preflight, preflight_script

    state.set(slot=slot)
    config = state.config
    findings = preflight.check(config["dsn"] or "", config["archive"], config["slot"], plugin)
    result = worst(findings)
    exit_code = 6 if result == FAIL else 0
    if fix_sql and not state.json:
        state.output.text(preflight_script.script(findings))
        return exit_code

    def render(console: Console) -> None:
        for found, following in zip(findings, [*findings[1:], None], strict=True):
            line = Text(f"{found.severity.upper():4} ", style=SEVERITY_STYLES[found.severity])
            line.append(f"{found.subject}: {found.message}", style="default")
            console.print(line)
            if found.fix_sql and (following is None or found.fix_sql != following.fix_sql):
                for statement in found.fix_sql.splitlines():
                    console.print(Text(f"       {statement}", style="cyan"))
        console.print(Text(f"result: {result}", style=SEVERITY_STYLES[result]))

    answer = {"result": result, "findings": [found.to_json() for found in findings]}
    state.output.result(answer, render)
    return exit_code
