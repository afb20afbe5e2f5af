"""Owns the command `interlock`: which commands there are, and how what goes wrong is told.

A command's module is imported when the command runs, so that `interlock --help` answers at once.
Exit codes: 0 it was done, 1 it failed, 2 the command line was wrong, 3 some rows have no answer (score), 130
interrupted; gate and loadtest have their own.
"""

import errno
import gc
import os
from importlib import import_module
from typing import Any

import click

from interlock import __version__
from interlock.core.errors import InterlockError
from interlock.core.garbage import seldom

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("node", "Start a node."),
    "down": ("node", "Stop the node."),
    "status": ("node", "Show the node and what it serves."),
    "quarantine": ("node", "List versions that crashed too often."),
    "register": ("register", "Make a model file a version that can be served."),
    "models": ("models", "List the models."),
    "versions": ("models", "List the versions of a model."),
    "show": ("record", "Show all that is recorded of a version."),
    "diff": ("record", "Show what differs between two versions."),
    "release": ("release", "Put a version live."),
    "pause": ("release", "Leave a canary's weight as it is."),
    "resume": ("release", "Let a paused canary go on."),
    "promote": ("release", "Give a canary all requests."),
    "abort": ("release", "End the release that is under way."),
    "watch": ("watch", "Show a release as it goes on."),
    "certificate": ("replay", "Show what a release by evidence proved."),
    "replay": ("replay", "Decide a release again, from what was seen."),
    "gate": ("gates", "Judge a version on a holdout, for CI."),
    "loadtest": ("gates", "Judge a version under load, for CI."),
    "rollback": ("release", "Go back to the version that was live before."),
    "events": ("models", "Show what happened."),
    "predict": ("predict", "Ask a model."),
    "score": ("score", "Answer every row of a Parquet file."),
    "completion": ("completion", "Print the script that completes commands in a shell."),
}
"""Command -> the module of this folder that defines it, and the line that `--help` shows."""

HINTS: dict[str, str] = {
    "NodeUnreachable": "start a node with: interlock up",
    "ModelNotFound": "list the models with: interlock models",
    "VersionNotFound": "list the versions with: interlock versions NAME",
    "UntrustedArtifact": "if you trust where it comes from, say --trust with: interlock register, or release",
}


OS_HINTS: dict[int, str] = {
    errno.EROFS: "the home folder must be writable: choose another with --home",
    errno.EACCES: "the home folder must belong to this user: choose another with --home",
    errno.ENOSPC: "make room on the disk; what was not finished leaves nothing behind",
    errno.EDQUOT: "this user's share of the disk is used up: make room",
}
"""What helps against an error of the operating system, by its number."""


ERROR_CODE = "interlock.error_code"
"""The key of click's `ctx.meta` under which a command says with what code its errors end."""


class Failure(click.ClickException):
    """One line on standard error, and a hint where there is one; exit code 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: Any = None) -> None:
        click.echo(f"interlock: {_printable(self.message)}", err=True)
        if self.hint:
            click.echo(f"  hint: {self.hint}", err=True)


class Commands(click.Group):
    """A group whose commands are imported on demand and whose errors are told in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"interlock.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._told(ctx)
        except click.ClickException as error:
            if ERROR_CODE not in ctx.meta:
                raise
            error.show()
            raise click.exceptions.Exit(ctx.meta[ERROR_CODE]) from error

    def _told(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InterlockError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(error.message, _hint(ctx, error)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(str(error), OS_HINTS.get(error.errno or 0, "")) from error
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            words = f"a fault in Interlock: {type(error).__name__}: {error}"
            raise Failure(words, "see where with: interlock --debug …") from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: interlock register iris model.onnx && interlock release iris --now && interlock up",
)
@click.version_option(__version__, "--version", prog_name="interlock", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run trained models as a production service that cannot silently ship a worse version.

    A command finds its node by --home (or INTERLOCK_HOME; default ~/.interlock) or by --url (or
    INTERLOCK_URL). Where no node runs, it works on the home folder itself.
    """


def main() -> None:
    """The entry point `interlock`."""
    os.umask(0o077)  # what it writes, and what the processes that it starts write, is for this user alone
    # More threads spin for a tenth of a second wherever NumPy is imported; and each version is measured with
    # one when it is registered, so that this is how it is served, too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    seldom()
    try:
        cli(prog_name="interlock")
    finally:
        gc.freeze()  # else Python looks through all of them once more as it ends


def _hint(ctx: click.Context, error: InterlockError) -> str:
    from interlock.cli.options import HOME, NAME, URL, default_home

    hint = HINTS.get(type(error).__name__, "").replace("NAME", _printable(ctx.meta.get(NAME, "NAME")))
    if type(error).__name__ != "ModelNotFound":
        return hint
    from interlock.cli.names import near_names

    near = near_names(ctx.meta.get(NAME, ""), ctx.meta.get(HOME) or default_home(), ctx.meta.get(URL))
    return f"did you mean {' or '.join(map(_printable, near))}? {hint}" if near else hint


def _printable(words: str) -> str:
    """One line without control characters, which a model's name or a foreign server could smuggle in."""
    return "".join(c if c.isprintable() else " " for c in words)


if __name__ == "__main__":
    main()
