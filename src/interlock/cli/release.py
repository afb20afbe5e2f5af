"""The commands that change what is live: release, rollback."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import json_option, model_argument, node_options
from interlock.registry.rows import ReleaseRow, ReleaseState

if TYPE_CHECKING:
    from interlock.cli.control import Control

_TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, 86400),
    help="Seconds to wait for the end; it goes on beyond.",
)
_WAIT = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")


@click.command(
    epilog="Examples: interlock release iris --now  |  interlock release iris 2 --now  |  "
    "interlock release iris @champion --now"
)
@model_argument
@click.argument("version", required=False)
@click.option(
    "--now", is_flag=True, help="All requests at once, when it is loaded and has passed its checks."
)
@_WAIT
@_TIMEOUT
@node_options
@json_option
def release(
    name: str,
    version: str | None,
    now: bool,
    wait: bool,
    timeout_s: float,
    home: Path,
    url: str | None,
    as_json: bool,
) -> None:
    """Put a version live: by number, by @alias, or the newest.

    The new version is loaded beside the old one, warmed up and checked, then takes all requests; no request
    fails for it. If anything goes wrong, the old version stays. Without a running node the release waits for
    the next one.
    """
    from interlock.cli.control import open_control

    if not now:
        raise click.UsageError(
            "this version of Interlock releases all at once only; strategies that gather evidence first are "
            f"not in it yet. Say so with --now: interlock release {name} {version or ''} --now".replace(
                "  ", " "
            )
        )
    with open_control(home, url) as control:
        _finish(control, control.release(name, version), wait, timeout_s, as_json)


@click.command(epilog="Example: interlock rollback iris")
@model_argument
@_WAIT
@_TIMEOUT
@node_options
@json_option
def rollback(name: str, wait: bool, timeout_s: float, home: Path, url: str | None, as_json: bool) -> None:
    """Go back to the version that was live before, or stop the release that is under way."""
    from interlock.cli.control import open_control

    with open_control(home, url) as control:
        _finish(control, control.rollback(name), wait, timeout_s, as_json)


def _finish(control: "Control", row: ReleaseRow, wait: bool, timeout_s: float, as_json: bool) -> None:
    from interlock.operations.wait import poll_release

    if wait and control.running:
        _tell(row)
        row = poll_release(control.read_release, row.id, timeout_s, _tell, told=row.state)
    if as_json:
        show.as_json(row)
    elif row.state is ReleaseState.DONE:
        spent_s = (row.finished_s or row.changed_s) - row.requested_s
        click.echo(f"version {row.number} of {row.model} is live (release {row.id}, {spent_s:.2f} s)")
    elif not row.state.finished and not control.running:
        click.echo(
            f"release {row.id}: version {row.number} of {row.model} is requested; no node runs here, "
            "the next one that starts carries it out"
        )
    elif not row.state.finished:
        click.echo(f"release {row.id}: version {row.number} of {row.model} is {row.state}")
    elif row.state is ReleaseState.SUPERSEDED:
        click.echo(f"release {row.id} of {row.model} (version {row.number}) ended: {row.reason}")
    if row.state is ReleaseState.FAILED:
        stays = f"version {row.previous_number} stays live" if row.previous_number else "nothing is live"
        raise Failure(f"release {row.id} of {row.model} (version {row.number}) failed: {row.reason}; {stays}")
    if row.state is ReleaseState.SUPERSEDED and wait and control.running and row.strategy == "now":
        raise click.exceptions.Exit(1)


def _tell(row: ReleaseRow) -> None:
    if not row.state.finished:
        show.say(f"release {row.id}: version {row.number} of {show.printable(row.model)} is {row.state} …")
