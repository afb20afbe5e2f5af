"""The commands that judge a version in CI: gate (on a holdout), loadtest (under load). Their exit codes are:
0 pass, 1 worse, 2 undecided, 3 an error of the command line, the data, the registry or the node."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from interlock.cli import show
from interlock.cli.main import ERROR_CODE
from interlock.cli.options import home_option, json_option, model_argument
from interlock.rollout.checks import EXIT_CODES, Report

F = TypeVar("F", bound=Callable[..., Any])

CODES = "Exit codes: 0 pass, 1 worse, 2 undecided, 3 an error (command line, data, registry, node)."
ERROR = 3
_FILE = click.Path(dir_okay=False, path_type=Path)
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


class GateCommand(click.Command):
    """A command whose exit codes 0 to 2 are verdicts: whatever goes wrong ends with 3."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None:
            parent.meta[ERROR_CODE] = ERROR
        return super().make_context(info_name, args, parent, **extra)


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(us|ms|s|min)", value)
    if found is None:
        raise click.BadParameter(f"{value!r}: want a number and its unit (us, ms, s, min), such as 20ms")
    return float(found[1]) * _TIMES[found[2]]


def report_options(function: F) -> F:
    """`--report`, `--junit` and `--json`, as `report: Path | None`, `junit: Path | None`, `as_json: bool`."""
    with_junit = click.option("--junit", type=_FILE, help="Write a JUnit file for CI; undecided is skipped.")
    with_report = click.option("--report", type=_FILE, help="Write all that was found here, as JSON.")
    return with_report(with_junit(json_option(function)))


@click.command(
    cls=GateCommand,
    epilog="Examples: interlock gate iris 3 --data holdout.csv --target kind --junit gate.xml  |  "
    "interlock gate churn @candidate --data holdout.parquet --metric accuracy:0.005 --slice region  |  "
    + CODES,
)
@model_argument
@click.argument("version", required=False)
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows that neither version was trained on (.csv, .parquet, .npz).",
)
@click.option("--target", metavar="COL", help="The answer in the data. [default: as at registration]")
@click.option("--against", default="@champion", show_default=True, help="The incumbent: a number or @ALIAS.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME:MARGIN",
    help="Metric, and by how much it may be worse, in its unit; N% of the incumbent's for rmse and mae. "
    "Repeat it for several. [default: accuracy:0.01 and log_loss:0.05, or rmse:5% and mae:5%]",
)
@click.option(
    "--slice", "slices", multiple=True, metavar="COL", help="Judge the values of a column apart, too."
)
@click.option(
    "--slice-rows", default=100, show_default=True, type=click.IntRange(1), help="Judge no smaller."
)
@click.option(
    "--slice-factor",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="So many margins are allowed in a slice.",
)
@click.option(
    "--alpha",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    help="The chance of a wrong pass, and of a wrong worse, at most.",
)
@click.option("--seed", default=0, show_default=True, help="Of the order in which rows are taken.")
@click.option("--max-latency-ms", type=float, help="Budget for the p95 of a call of one row, timed here.")
@click.option(
    "--max-latency-ratio", type=float, help="Budget for the median of such calls, over the incumbent's."
)
@click.option("--max-size-mb", type=float, help="Budget for the artifact's files.")
@click.option(
    "--max-memory-mb", type=float, help="Budget for the loaded version, as registration measured it."
)
@click.option("--trust", is_flag=True, help="Load pickles of versions that plain MLflow code registered.")
@report_options
@home_option
def gate(
    name: str,
    version: str | None,
    data: Path,
    metrics: tuple[str, ...],
    report: Path | None,
    junit: Path | None,
    as_json: bool,
    home: Path,
    **given: Any,
) -> None:
    """Judge whether VERSION of NAME (the newest by default) is worse than the incumbent on a holdout.

    Both answer the same rows, each in a process of its own, and are compared row by row. Pass: it is shown
    that the candidate is worse by less than the margin in every metric and slice. Worse: it is shown that it
    is worse by more in one, or a budget or the signature does not hold. Undecided: too few rows, and how many
    would probably do.
    """
    from interlock.operations.context import opened
    from interlock.operations.gate import Plan
    from interlock.operations.gate import gate as operation
    from interlock.operations.holdout import parse_metric

    plan = Plan(metrics=tuple(parse_metric(text) for text in metrics), **given)
    with opened(home) as ctx:
        found = operation(ctx, name, version, data, plan, show.say)
    tell(found, report, junit, as_json)


@click.command(
    cls=GateCommand,
    epilog="Examples: interlock loadtest iris 3 --rps 500 --p99 20ms  |  interlock loadtest iris --rps 100 "
    "--p99 50ms --duration 2min --data rows.csv --junit load.xml  |  " + CODES,
)
@model_argument
@click.argument("version", required=False)
@click.option(
    "--rps", required=True, type=click.FloatRange(0, 100_000, min_open=True), help="Requests a second."
)
@click.option("--p99", "p99_s", required=True, callback=_seconds, help="The budget, such as 20ms.")
@click.option(
    "--duration", "duration_s", default="30s", show_default=True, callback=_seconds, help="How long."
)
@click.option(
    "--warm-up", "warm_up_s", default="3s", show_default=True, callback=_seconds, help="Not counted."
)
@click.option(
    "--max-failures", default=0, show_default=True, type=click.IntRange(0), help="Requests that may fail."
)
@click.option(
    "--connections", default=64, show_default=True, type=click.IntRange(1, 10_000), help="Kept alive."
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Of the private node."
)
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows to ask about (.csv, .parquet, .npz), one a request. [default: made up]",
)
@click.option("--target", metavar="COL", help="A column of the data to leave out.")
@click.option("--url", help="Load this running node (its data port) instead of a private one.")
@click.option("--allow-remote", is_flag=True, help="Let --url be another machine's.")
@click.option(
    "--alpha",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    help="The chance that the p99 lies beyond an end of its interval, at most.",
)
@click.option("--trust", is_flag=True, help="Load pickles of versions that plain MLflow code registered.")
@report_options
@home_option
def loadtest(
    name: str,
    version: str | None,
    rps: float,
    p99_s: float,
    max_failures: int,
    alpha: float,
    report: Path | None,
    junit: Path | None,
    as_json: bool,
    home: Path,
    **given: Any,
) -> None:
    """Judge whether VERSION of NAME (the newest by default) keeps its p99 at a rate of requests.

    It runs on a private node in a temporary home, which ends with the command. Requests leave at times fixed
    beforehand (Poisson), whatever the server does, and latency counts from these. Pass: the upper end of the
    p99 is within the budget, and failures and rate hold. Worse: the lower end is above it, or they do not.
    Undecided: too few requests, and how long a run would probably do; or the generator was late itself.
    """
    from interlock.operations.context import opened
    from interlock.operations.loadtest import Plan
    from interlock.operations.loadtest import loadtest as operation
    from interlock.rollout.loadtest import Wanted

    plan = Plan(Wanted(rps, p99_s, max_failures, alpha), **given)
    with opened(home) as ctx:
        found = operation(ctx, name, version, plan, show.say)
    tell(found, report, junit, as_json)


def tell(found: Report, report: Path | None, junit: Path | None, as_json: bool) -> None:
    """Print and write a report. Raises: Exit with its code, unless it passed."""
    import msgspec

    from interlock.operations.junit import junit as junit_of

    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if junit is not None:
        junit.write_bytes(junit_of(found))
    if as_json:
        show.as_json(found)
    else:
        against = f" against {found.facts['against']}" if "against" in found.facts else ""
        title = f"{found.command} of {found.model} version {found.version}{against}: {found.outcome.upper()}"
        click.echo(show.printable(title))
        show.table(["check", "outcome", "why"], [(c.name, c.outcome, c.words) for c in found.checks])
        if found.facts.get("worst_slice"):
            click.echo(show.printable(f"worst slice: {found.facts['worst_slice']}"))
        for note in found.notes:
            click.echo(show.printable(f"note: {note}"))
    if found.outcome != "pass":
        raise click.exceptions.Exit(EXIT_CODES[found.outcome])
