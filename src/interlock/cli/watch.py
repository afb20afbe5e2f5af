"""The command that shows a release as it goes on."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from interlock.cli import show
from interlock.cli.options import model_argument, node_options
from interlock.core.errors import NodeUnreachable, NotFound
from interlock.core.verdict import Verdict
from interlock.registry.rows import Event, ReleaseRow, ReleaseState

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from interlock.operations.control import Control
    from interlock.rollout.judgement import Gate
    from interlock.rollout.view import RolloutView

BAR = 24
"""Cells of the bar of a gate: its whole length is the threshold."""
EVENTS = 6
PATIENCE_S = 15.0
"""How long a node may be silent before watching ends: its control may be started anew, and the release goes
on meanwhile."""


@click.command(epilog="Examples: interlock watch iris  |  interlock watch iris --json | jq .judgement.harm")
@model_argument
@click.option(
    "--interval",
    "interval_s",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Show how it stands now and leave.")
@node_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each look.")
def watch(name: str, interval_s: float, once: bool, home: Path, url: str | None, as_json: bool) -> None:
    """Show the open release of a model as it goes on: shares, evidence, harm, forecast, events.

    Leaves when the release has ended: with 0 if the version was promoted (or passed as a shadow), else 1.
    """
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.rollout(name)  # an error where there is nothing to watch
        release = found.release.id
        if once:
            _show_once(found, _events(control, name, release), as_json)
            return
        if as_json or not sys.stdout.isatty():
            row = _lines(control, found, interval_s, as_json)
        else:
            row = _live(control, found, interval_s)
    how = f"release {row.id}: version {row.number} of {show.printable(row.model)} {_ended(row)}"
    show.say(f"{how}; see: interlock certificate {row.id}")
    if row.state not in (ReleaseState.DONE, ReleaseState.PASSED):
        raise click.exceptions.Exit(1)


def _ended(row: ReleaseRow) -> str:
    words = {ReleaseState.DONE: "is live", ReleaseState.PASSED: "passed as a shadow"}
    return words.get(row.state, f"ended as {row.state}: {show.printable(row.reason)}")


def _lines(control: "Control", found: "RolloutView", interval_s: float, as_json: bool) -> ReleaseRow:
    """A line for each look, or for people one for each that differs from the one before."""
    said = ""
    while True:
        if as_json:
            click.echo(msgspec.json.encode(found))
        elif (line := _line(found)) != said:
            said = line
            click.echo(line)
        following = _next(control, found, interval_s)
        if isinstance(following, ReleaseRow):
            return following
        found = following


def _live(control: "Control", found: "RolloutView", interval_s: float) -> ReleaseRow:
    from rich.live import Live

    name, release = found.release.model, found.release.id
    events = _events(control, name, release)
    with Live(_picture(found, events), console=_console(), auto_refresh=False) as live:
        while True:
            following = _next(control, found, interval_s)
            if isinstance(following, ReleaseRow):
                return following
            found = following
            with suppress(NodeUnreachable):
                events = _events(control, name, release)
            live.update(_picture(found, events), refresh=True)


def _next(control: "Control", found: "RolloutView", interval_s: float) -> "RolloutView | ReleaseRow":
    """The next look; the row once the release that is watched has ended."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        time.sleep(interval_s)
        try:
            return _look(control, found)
        except NodeUnreachable:
            if time.monotonic() >= until_s:
                raise


def _look(control: "Control", found: "RolloutView") -> "RolloutView | ReleaseRow":
    with suppress(NotFound):
        following = control.rollout(found.release.model)
        if following.release.id == found.release.id:
            return following
    row = control.read_release(found.release.id)
    return row if row.state.finished else found


def _events(control: "Control", name: str, release: int) -> list[Event]:
    return [e for e in control.events(name, None, 50) if e.body.get("release") == release][-EVENTS:]


def _show_once(found: "RolloutView", events: list[Event], as_json: bool) -> None:
    if as_json:
        show.as_json_line(found)
    else:
        _console().print(_picture(found, events))


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else show.PIPE_COLUMNS, highlight=False)


def _line(found: "RolloutView") -> str:
    row, judgement = found.release, found.judgement
    words = f"release {row.id}: version {row.number} of {show.printable(row.model)} is {row.state}"
    if judgement is None:
        return f"{words}; {show.printable(found.why)}"
    return (
        f"{words}, share {row.weight:.3g}, {judgement.candidate_requests:,} requests of its own, "
        f"{_ran(found):,} run by both, harm {judgement.harm:.0f}; {show.printable(found.why)}"
    )


def _ran(found: "RolloutView") -> int:
    assert found.judgement is not None
    pairs = found.judgement.pairs
    return pairs.good + pairs.worse + pairs.better + pairs.bad


def _picture(found: "RolloutView", events: list[Event]) -> "RenderableType":
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    row, judgement = found.release, found.judgement
    arms = row.policy.arms if row.policy is not None else ()
    shares = " → ".join(f"{epoch.weight:.3g}" for epoch in found.epochs[-8:]) or "none yet"
    if arms and found.epochs:
        shares = ", ".join(f"{arm.weight:.3g} to {arm.version}" for arm in arms)
    rate = "not measured yet" if found.rate_per_s is None else f"{found.rate_per_s:,.3g} requests/s"
    parts: list[RenderableType] = [Text(f"traffic {rate}   shares so far {shares}")]
    if judgement is not None:
        budget = row.policy.budget if row.policy is not None else 0.0
        left = "no limit" if found.may_send is None else f"{found.may_send:,.0f} more requests"
        parts.append(
            Text(
                f"own requests {judgement.candidate_requests:,} ({judgement.candidate_bad:,} bad), incumbent "
                f"{judgement.incumbent_requests:,} ({judgement.incumbent_bad:,}), run by both {_ran(found):,}"
            )
        )
        spent = f"harm {judgement.harm:.0f}" if arms else f"harm {judgement.harm:.0f} of {budget:g}"
        parts.append(
            Text(f"{spent}   fails at most {judgement.excess_most:.2%} more often   the budget allows {left}")
        )
        gates = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("gate", "evidence, limit at the end", "", "verdict"):
            gates.add_column(title)
        for gate in judgement.gates:
            gates.add_row(gate.name, _bar(gate), _evidence(gate), _verdict(gate))
        parts += [Text(""), gates]
    parts += [Text(""), Text(f"{found.decided}: {show.printable(found.why)}")]
    if events:
        log = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for event in events:
            reason = show.printable(str(event.body.get("reason") or ""))
            log.add_row(show.ago(event.time_s), Text(show.printable(event.kind)), Text(reason[:160]))
        parts += [Text(""), log]
    numbers = ", ".join(arm.version for arm in arms) or row.number
    title = f"{row.model}: version {numbers} against {found.incumbent or 'nothing'}, {row.strategy}, "
    title = show.printable(f"{title}{row.state}, share {row.weight:.3g}")
    return Panel(Group(*parts), title=Text(title), title_align="left")


def _bar(gate: "Gate") -> str:
    """Evidence as a share of its threshold, in logarithms: empty up to 1, full where the gate speaks."""
    if gate.log10_threshold <= 0.0:
        return ""
    full = max(0.0, min(gate.log10_e / gate.log10_threshold, 1.0))
    filled = round(full * BAR)
    return "█" * filled + "·" * (BAR - filled)


def _evidence(gate: "Gate") -> str:
    return f"10^{gate.log10_e:.1f} of 10^{gate.log10_threshold:.1f}"


def _verdict(gate: "Gate") -> str:
    styles = {Verdict.FAIL: "[red]against it[/red]", Verdict.PASS: "[green]passed[/green]"}
    return styles.get(gate.verdict, "[dim]open[/dim]")
