"""The command that prints the script by which a shell completes the others."""

import click


@click.command(
    epilog='Examples: eval "$(interlock completion bash)"  |  interlock completion fish > '
    "~/.config/fish/completions/interlock.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and model names in a shell."""
    from click.shell_completion import get_completion_class

    from interlock.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # the choices above are those that click has
    click.echo(kind(cli, {}, "interlock", "_INTERLOCK_COMPLETE").source())
