"""The commands that change what is live: release, rollback, and the steps of a canary."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import json_option, model_argument, node_options
from interlock.cli.selftest import Asked, selftest_options
from interlock.core.errors import ConfigError
from interlock.core.feedback import parse_metric
from interlock.core.policy import FOREIGN, GUARDRAILS, UNITS, Policy, Undecided
from interlock.registry.rows import ReleaseRow, ReleaseState

if TYPE_CHECKING:
    from interlock.operations.control import Control, Step

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, 86400),
    help="Seconds to wait for the end; it goes on beyond.",
)
_WAIT = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
_DEFAULTS = Policy()


def _rule(flag: str, key: str, words: str, **options: Any) -> Callable[[F], F]:
    """An option of the policy of a canary or a shadow."""
    default = getattr(_DEFAULTS, key)
    shown = "where both versions can run one request" if default is None else default
    return click.option(flag, key, default=None, help=f"{words} [default: {shown}]", **options)


def _unit(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The unit, if a policy can have it. Raises: BadParameter."""
    try:
        return None if value is None else Policy(unit=value).unit
    except ConfigError as error:
        raise click.BadParameter(error.message) from None


@click.command(
    epilog="Examples: interlock release iris  |  interlock release iris 2 --now  |  "
    "interlock release iris @champion --canary --budget 20 --slower 1.5  |  "
    "interlock release iris --ab --arm 2=0.3 --arm 3=0.3 --metric conversion"
)
@model_argument
@click.argument("version", required=False)
@click.option(
    "--canary", "strategy", flag_value="canary", help="By evidence, on a growing share (the default)."
)
@click.option(
    "--shadow", "strategy", flag_value="shadow", help="On copies only: says whether it would do; never live."
)
@click.option(
    "--ab", "strategy", flag_value="ab", help="Fixed shares until a metric proves one version better."
)
@click.option(
    "--now", "strategy", flag_value="now", help="All requests at once, when it has passed its checks."
)
@click.option(
    "--blue-green", "strategy", flag_value="blue-green", help="As --now; the old version stays hot."
)
@click.option("--keep", "keep_s", type=float, metavar="SECONDS", help="How long the old version stays hot.")
@_rule("--budget", "budget", "Extra failed requests that the trial may cost.", type=float)
@_rule("--margin", "margin", "So much higher a failure rate may be promoted.", type=float)
@_rule("--alpha", "alpha", "The chance of a wrong decision, ever.", type=float)
@_rule("--slower", "slower", "So many times as slow is still all right.", type=float)
@_rule("--larger", "larger", "So many times as much memory is still all right.", type=float)
@click.option("--objective-ms", type=float, metavar="MS", help="An answer that takes longer is a slow one.")
@_rule("--most-weight", "most_weight", "The largest share before it is promoted.", type=float)
@click.option(
    "--guardrail",
    "guardrails",
    multiple=True,
    type=click.Choice(GUARDRAILS),
    help="What may stop it; repeat it for several. [default: all]",
)
@_rule("--shadow-share", "shadow", "Of requests copied to it before it answers any; 0 to 1.", type=float)
@_rule("--reverse-share", "reverse", "Of its requests copied to the live version; 0 to 1.", type=float)
@_rule("--shield/--no-shield", "shielded", "Answer by the live version where it fails.", is_flag=True)
@click.option(
    "--most-disagreement",
    type=float,
    metavar="SHARE",
    help="Of the answers of both that may differ; 1: all. [default: 0.2 of labels]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="WORDS",
    help="What feedback is to say of it: a name, then fields: 'stars least=1 greatest=5 age_s=3600 prove'. "
    "Repeat it for several; the verdict of --ab is on the first.",
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="VERSION[=SHARE]",
    help="A candidate of --ab; repeat it for several. [default: equal shares]",
)
@_rule("--unit", "unit", "Who sticks to a version.", metavar=f"[{'|'.join(UNITS)}]", callback=_unit)
@_rule("--time-limit", "time_limit_s", "Seconds until it counts as undecided.", type=float, metavar="SECONDS")
@_rule("--undecided", "undecided", "What to do then.", type=click.Choice([one.value for one in Undecided]))
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Wait until it has ended. [default: wait; a canary: until it answers its first share]",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Take in a version that plain MLflow code registered although loading it runs code that it brings.",
)
@_TIMEOUT
@selftest_options
@node_options
@json_option
def release(
    name: str,
    version: str | None,
    selftest: Asked | None,
    strategy: str | None,
    keep_s: float | None,
    objective_ms: float | None,
    most_disagreement: float | None,
    guardrails: tuple[str, ...],
    metrics: tuple[str, ...],
    arms: tuple[str, ...],
    wait: bool | None,
    trust: bool,
    timeout_s: float,
    home: Path,
    url: str | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Put a version live: by number, by @alias, or the newest.

    The new version is loaded beside the old one, warmed up and checked; no request fails for it, and if
    anything goes wrong, the old version stays. A canary first runs copies of requests, whose answers nobody
    gets, then answers a share that grows as the evidence does, until it is promoted or rolled back by itself;
    where no version is live yet, it gets all requests at once. Without a running node the release waits for
    the next one.
    """
    from interlock.operations.control import open_control

    chosen = strategy or "canary"
    given = {key: value for key, value in rules.items() if value is not None}
    if objective_ms is not None:
        given["objective_s"] = objective_ms / 1e3
    if guardrails:
        given["guardrails"] = guardrails
    if most_disagreement is not None:
        given["most_disagreement"] = most_disagreement
    if metrics:
        given["metrics"] = [msgspec.to_builtins(parse_metric(words)) for words in metrics]
    if arms:
        given["arms"] = _shares(arms)
    _check(chosen, version, given)
    if selftest is not None:
        return selftest.run(name, version, strategy, given, home, url, as_json)
    if keep_s is not None and chosen in ("now", "shadow"):
        raise click.UsageError(f"--keep: nothing is kept with --{chosen}; want --blue-green --keep")
    if trust:
        version = _vouched(name, version, given.get("arms", []), home, url)
    with open_control(home, url) as control:
        if chosen == "now":
            row = control.release(name, version)
        elif chosen == "blue-green":
            row = control.release_blue_green(name, version, 300.0 if keep_s is None else keep_s)
        elif chosen == "shadow":
            row = control.release_shadow(name, version, given)
        elif chosen == "ab":
            row = control.release_ab(name, version, given if keep_s is None else {**given, "keep_s": keep_s})
        else:
            row = control.release_canary(
                name, version, given if keep_s is None else {**given, "keep_s": keep_s}
            )
        enough = () if wait else (ReleaseState.RAMPING, ReleaseState.PAUSED, ReleaseState.KEEPING)
        _finish(control, row, wait is not False, timeout_s, as_json, enough)


def _vouched(
    name: str, selector: str | None, arms: list[dict[str, Any]], home: Path, url: str | None
) -> str | None:
    """Take the versions in, here: who vouches for code must own the home. Returns the number of the one that
    `selector` names; None where `arms` name several."""
    from interlock.operations.context import opened
    from interlock.operations.resolve import resolve

    if url is not None:
        raise click.UsageError(
            "--trust with --url: code is vouched for on the node's own machine, with --home"
        )
    with opened(home) as context:
        if arms:
            for arm in arms:
                resolve(context, name, arm["version"], trust=True, progress=show.say)
            return None
        return resolve(context, name, selector, trust=True, progress=show.say).number


def _check(chosen: str, version: str | None, given: dict[str, Any]) -> None:
    """Whether these rules fit the strategy."""
    if "arms" in given and chosen != "ab":
        raise click.UsageError(f"--arm: several versions are compared with --ab; leave it out, or --{chosen}")
    if "arms" in given and version is not None:
        raise click.UsageError(f"version {version} and --arm: name it with --arm {version} too, or alone")
    if given and chosen not in FOREIGN:
        options = ", ".join(sorted(given))
        raise click.UsageError(f"{options}: these are rules for a canary; leave them out, or --{chosen}")
    why, foreign = FOREIGN.get(chosen, ("", ()))
    for rule in foreign:
        if rule in given:
            raise click.UsageError(f"{rule}: {why}; leave it out, or --canary")


def _shares(arms: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for arm in arms:
        version, equals, share = arm.partition("=")
        try:
            weight = float(share) if equals else 1.0 / (len(arms) + 1)
        except ValueError:
            raise click.BadParameter(f"{arm!r}: want VERSION or VERSION=SHARE, such as 2=0.3") from None
        found.append({"version": version, "weight": weight})
    return found


def _step_options(function: F) -> F:
    return model_argument(node_options(json_option(function)))


@click.command(epilog="Example: interlock pause iris")
@_step_options
def pause(name: str, home: Path, url: str | None, as_json: bool) -> None:
    """Leave the weight of a canary as it is until it is resumed.

    What is proved against the candidate meanwhile still rolls it back.
    """
    _take(name, "pause", home, url, as_json)


@click.command(epilog="Example: interlock promote iris")
@_step_options
def promote(name: str, home: Path, url: str | None, as_json: bool) -> None:
    """Give a canary all requests, whatever the evidence."""
    _take(name, "promote", home, url, as_json)


@click.command(epilog="Example: interlock abort iris")
@_step_options
def abort(name: str, home: Path, url: str | None, as_json: bool) -> None:
    """End the release that is under way; the version that was live answers all requests."""
    _take(name, "abort", home, url, as_json)


@click.command(epilog="Example: interlock resume iris --budget 100")
@_step_options
@click.option("--budget", type=float, help="From now on: extra failed requests that the trial may cost.")
def resume(name: str, budget: float | None, home: Path, url: str | None, as_json: bool) -> None:
    """Let a paused canary go on; its time limit begins anew."""
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        _stands(control.resume(name, budget), as_json)


def _take(name: str, step: "Step", home: Path, url: str | None, as_json: bool) -> None:
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        _stands(control.step(name, step), as_json)


def _stands(row: ReleaseRow, as_json: bool) -> None:
    if as_json:
        show.as_json(row)
    else:
        click.echo(f"release {row.id}: version {row.number} of {row.model} is {row.state}: {row.reason}")


@click.command(epilog="Example: interlock rollback iris")
@model_argument
@_WAIT
@_TIMEOUT
@node_options
@json_option
def rollback(name: str, wait: bool, timeout_s: float, home: Path, url: str | None, as_json: bool) -> None:
    """Go back to the version that was live before, or stop the release that is under way."""
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        _finish(control, control.rollback(name), wait, timeout_s, as_json)


def _finish(
    control: "Control",
    row: ReleaseRow,
    wait: bool,
    timeout_s: float,
    as_json: bool,
    enough: tuple[ReleaseState, ...] = (),
) -> None:
    from interlock.operations.wait import poll_release

    if wait and control.running:
        _tell(row)
        row = poll_release(control.read_release, row.id, timeout_s, _tell, told=row.state, enough=enough)
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
    elif row.state is ReleaseState.PASSED:
        click.echo(
            f"version {row.number} of {row.model} passed as a shadow (release {row.id}): {row.reason}; "
            f"release it with: interlock release {row.model} {row.number}"
        )
    elif row.state is ReleaseState.RAMPING and row.weight == 0.0:
        click.echo(
            f"release {row.id}: version {row.number} of {row.model} runs copies of the requests; see how it "
            f"goes on: interlock watch {row.model}"
        )
    elif row.state is ReleaseState.RAMPING:
        click.echo(
            f"release {row.id}: version {row.number} of {row.model} answers {row.weight:.3g} of the "
            f"requests; see how it goes on: interlock watch {row.model}"
        )
    elif row.state is ReleaseState.KEEPING:
        click.echo(
            f"release {row.id}: version {row.number} of {row.model} answers all requests; version "
            f"{row.previous_number} is kept, so that this goes back at once: interlock rollback {row.model}"
        )
    elif not row.state.finished:
        click.echo(f"release {row.id}: version {row.number} of {row.model} is {row.state}")
    elif row.state is ReleaseState.SUPERSEDED:
        click.echo(f"release {row.id} of {row.model} (version {row.number}) ended: {row.reason}")
    if row.state is ReleaseState.FAILED:
        stays = f"version {row.previous_number} stays live" if row.previous_number else "nothing is live"
        reason = row.reason if row.reason.endswith(stays) else f"{row.reason}; {stays}"
        raise Failure(f"release {row.id} of {row.model} (version {row.number}) failed: {reason}")
    if row.state is ReleaseState.SUPERSEDED and wait and control.running and row.strategy != "rollback":
        raise click.exceptions.Exit(1)


def _tell(row: ReleaseRow) -> None:
    if not row.state.finished:
        show.say(f"release {row.id}: version {row.number} of {show.printable(row.model)} is {row.state} …")
