"""`waly completion SHELL`"""

import click
from click.shell_completion import get_completion_class

from waly_cdc.cli.options import State, global_options, pass_state


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@global_options
@pass_state
def command(state: State, shell: str) -> None:
    """Print the completion script of a shell.

    For bash: waly completion bash > ~/.local/share/bash-completion/completions/waly
    """
    from waly_cdc.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    state.output.text(found(cli, {}, "waly", "_WALY_COMPLETE").source())
