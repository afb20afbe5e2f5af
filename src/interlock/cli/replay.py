"""The commands about what a release decided: deciding it again, and its certificate."""

from pathlib import Path

import click
import msgspec

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import json_option, node_options

PAGE = 1000


@click.command(epilog="Examples: interlock certificate 7 > release-7.md  |  interlock certificate 7 --json")
@click.argument("release", type=click.IntRange(min=1))
@node_options
@json_option
def certificate(release: int, home: Path, url: str | None, as_json: bool) -> None:
    """Show what a release by evidence compared, how it ended, and what that is worth, as Markdown.

    It is derived from the event log; a node also leaves it in the home folder, under certificates/.
    """
    from interlock.operations.control import open_control
    from interlock.rollout.certificate import as_markdown

    with open_control(home, url) as control:
        found = control.certificate(release)
    if as_json:
        show.as_json(found)
    else:
        click.echo(as_markdown(found), nl=False)


@click.command(epilog="Example: interlock replay 7")
@click.argument("release", type=click.IntRange(min=1))
@node_options
@json_option
def replay(release: int, home: Path, url: str | None, as_json: bool) -> None:
    """Decide every step of a release again, from what each decision saw, and say where one differs.

    Ends with 1 if one does.
    """
    from interlock.operations.control import open_control
    from interlock.rollout.replay import decisions
    from interlock.rollout.replay import replay as derive

    with open_control(home, url) as control:
        model = control.read_release(release).model
        events = page = control.events(model, 0, PAGE)
        while len(page) == PAGE:
            page = control.events(model, page[-1].seq, PAGE)
            events = [*events, *page]
    mine = [event for event in events if event.body.get("release") == release]
    try:
        taken, found = decisions(mine), derive(mine)
    except msgspec.ValidationError as error:
        raise Failure(f"release {release} has a record that this Interlock cannot read: {error}") from None
    if as_json:
        show.as_json(found)
    else:
        for one in found:
            words = f"event {one.seq} (decision code {one.decision}): {one.logged}, now {one.derived}"
            click.echo(show.printable(words))
        click.echo(
            f"release {release} of {show.printable(model)}: {len(taken)} decisions, {len(found)} differ"
        )
    if not taken:
        raise Failure(f"release {release} holds no decisions: nobody has begun to carry it out")
    if found:
        raise click.exceptions.Exit(1)
