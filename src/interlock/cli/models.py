"""The commands that list: models, versions, events."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from interlock.cli import show
from interlock.cli.options import json_option, maybe_model_argument, model_argument, node_options

if TYPE_CHECKING:
    from interlock.registry.rows import Event

SNAPSHOT = "snapshot"
FOLLOW_POLL_S = 0.3
"""How often `events --follow` asks for more."""


@click.command(epilog="Example: interlock models --json | jq -r .[].name")
@node_options
@json_option
def models(home: Path, url: str | None, as_json: bool) -> None:
    """List the models that the registry or the node knows."""
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.models()
    if as_json:
        show.as_json(found)
    elif not found:
        show.say("no models yet; register one with: interlock register NAME ARTIFACT")
    else:
        show.table(
            ["model", "live", "newest", "versions", "last release"],
            [
                (
                    model.name,
                    model.live,
                    model.newest,
                    model.versions,
                    ""
                    if model.release is None
                    else f"{model.release.id}: {model.release.number} {model.release.state}",
                )
                for model in found
            ],
        )


@click.command(epilog="Example: interlock versions iris")
@model_argument
@node_options
@json_option
def versions(name: str, home: Path, url: str | None, as_json: bool) -> None:
    """List the versions of a model, newest first."""
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.versions(name)
    if as_json:
        show.as_json(found)
        return
    show.table(
        ["version", "live", "state", "aliases", "runtime", "placement", "quality", "registered", "digest"],
        [
            (
                version.number,
                "live" if version.live else "",
                f"{version.state}: {version.reason}" if version.reason else version.state,
                ", ".join(version.aliases),
                version.runtime,
                version.placement,
                "" if version.quality is None else f"{version.metric} {version.quality:.4g}",
                show.ago(version.created_s),
                version.digest[:19],
            )
            for version in found
        ],
    )


@click.command(epilog="Examples: interlock events iris  |  interlock events --follow --json")
@maybe_model_argument
@node_options
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens next, until Ctrl-C.")
@click.option("--after", "after_seq", type=click.IntRange(min=0), help="Only later than this number.")
@click.option("--full", is_flag=True, help="Show what each decision saw, too: its whole snapshot.")
@click.option("-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="The most.")
@json_option
def events(
    name: str | None,
    home: Path,
    url: str | None,
    follow: bool,
    after_seq: int | None,
    full: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Show what happened, oldest first: the newest events, or those after a number.

    A decision's snapshot, from which it can be replayed, is shown with --full only. With --follow and
    --json, each event is one line of JSON.
    """
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.events(name, after_seq, limit)
        if not found and name is not None:
            control.versions(name)  # raises for a name that nobody knows: else a slip waits for ever
        if as_json and not follow:
            show.as_json(found if full else [_brief(event) for event in found])
            return
        if not found and not follow:
            show.say("nothing has happened yet")
        seen = after_seq or 0
        while True:
            for event in found:
                seen = event.seq
                if as_json:
                    show.as_json_line(event if full else _brief(event))
                else:
                    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_s))
                    body = ", ".join(
                        f"{key}={_short(value)}" for key, value in _brief(event).body.items() if value
                    )
                    click.echo(
                        show.printable(
                            f"{event.seq:>6}  {stamp}  {event.model or '-':<16}  {event.kind}  {body}"
                        )
                    )
                    if full and (snapshot := event.body.get(SNAPSHOT)) is not None:
                        for line in msgspec.json.format(msgspec.json.encode(snapshot)).decode().splitlines():
                            click.echo(f"        {show.printable(line)}")
            if not follow:
                return
            if len(found) < limit:
                time.sleep(FOLLOW_POLL_S)
            found = control.events(name, seen, limit)


def _brief(event: "Event") -> "Event":
    body = {key: value for key, value in event.body.items() if key != SNAPSHOT}
    return msgspec.structs.replace(event, body=body)


def _short(value: object) -> str:
    words = str(value)
    return words if len(words) <= 120 else words[:119] + "…"
