"""The part of `interlock release` that tries the gates of a model on copies of its live version."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from interlock.cli import show

if TYPE_CHECKING:
    from interlock.evidence.binomial import Share
    from interlock.rollout.selftest import Report, Trial

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--selftest",
        is_flag=True,
        help="Release nothing: try the gates, under these rules, on copies of the live version, on a model "
        "of their own. Exit code 1 if they raise more false alarms than alpha allows, or miss a fault.",
    ),
    click.option(
        "--trials", type=click.IntRange(0, 1000), help="Self-test: releases of the same version. [default: 3]"
    ),
    click.option(
        "--fault",
        "faults",
        multiple=True,
        metavar="KIND=LEVEL",
        help="Self-test: fail, flip or nan on a share of the rows, slow so many times; repeat it for "
        "several. [default: fail=0.05 slow=3 flip=0.4 nan=0.05]",
    ),
    click.option(
        "--rate",
        "rate_per_s",
        type=click.FloatRange(1, 1000),
        help="Self-test: its own requests a second, each run by two versions beside your traffic. "
        "[default: 100]",
    ),
    click.option(
        "--seconds",
        "limit_s",
        type=click.FloatRange(10, 86400),
        help="Self-test: how long it may take; what is undecided then is held. [default: 900]",
    ),
    click.option(
        "--data",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Self-test: rows to ask about (.csv, .parquet, .npz). [default: made up]",
    ),
)


class Asked(msgspec.Struct, frozen=True):
    """That a self-test is asked for, and what of its plan was said."""

    said: dict[str, Any]

    def run(
        self,
        name: str,
        version: str | None,
        strategy: str | None,
        rules: dict[str, Any],
        home: Path,
        url: str | None,
        as_json: bool,
    ) -> None:
        """Carry it out and print what it found. Raises: UsageError; Exit(1) if something did not hold."""
        if version is not None or strategy not in (None, "canary"):
            raise click.UsageError(
                "--selftest: it releases copies of the live version as canaries, and no other"
            )
        if url is not None:
            raise click.UsageError(
                "--selftest works in the home folder of a node on this machine: want --home, not --url or "
                "INTERLOCK_URL"
            )
        from interlock.core.fault import parse_fault
        from interlock.operations.context import opened
        from interlock.operations.selftest import Plan, selftest

        said = dict(self.said)
        if "faults" in said:
            said["faults"] = tuple(parse_fault(text) for text in said["faults"])
        plan = Plan(**said)
        with opened(home) as ctx:
            found = selftest(ctx, name, plan, rules, lambda words: show.say(show.printable(words)))
        if as_json:
            show.as_json(found)
        else:
            _print(found)
        if found.against:
            raise click.exceptions.Exit(1)


def selftest_options(function: F) -> F:
    """The options of a self-test, as `selftest: Asked | None`."""

    @wraps(function)
    def with_selftest(*args: Any, **given: Any) -> Any:
        asked = given.pop("selftest")
        values = {key: given.pop(key) for key in ("trials", "faults", "rate_per_s", "limit_s", "data")}
        said = {key: value for key, value in values.items() if value not in (None, ())}
        if said and not asked:
            raise click.UsageError("--trials, --fault, --rate, --seconds and --data are for --selftest")
        return function(*args, selftest=Asked(said) if asked else None, **given)

    decorated: Any = with_selftest
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    result: F = decorated
    return result


def _print(found: "Report") -> None:
    policy, same = found.policy, [one for one in found.trials if one.fault is None]
    click.echo(
        f"gates of {show.printable(found.model)}, tried on copies of version {found.version}: alpha "
        f"{policy.alpha:.2%}, {found.rate_per_s:g} requests/s, {found.seconds:.0f} s"
    )
    counts = [
        f"{sum(one.outcome == how for one in same)} {how}" for how in ("promoted", "held", "rolled back")
    ]
    if same:
        click.echo(f"the same version, {len(same)} releases: {', '.join(counts)}")
        click.echo(f"  false alarms of releases: {_share(found.alarms)}")
        gates = f" ({', '.join(found.block_gates)})" if found.block_gates else ""
        click.echo(f"  false alarms of blocks of evidence: {_share(found.blocks)}{gates}")
    bad = [one for one in found.trials if one.fault is not None]
    if bad:
        show.table(
            ["fault", "ended", "by", "s", "own", "both ran", "bound", "to 0, s", "clients failed"],
            map(_row, bad),
        )
    for title, why in found.left_out.items():
        click.echo(f"not tried: {title}: {why}")
    for line in found.against:
        click.echo(show.printable(line))
    if not found.against:
        held = ["no more false alarms than alpha allows"] if same else []
        click.echo(f"all held: {', '.join([*held, *(['every fault was caught'] if bad else [])])}")


def _row(one: "Trial") -> tuple[object, ...]:
    unit = "own" if one.fault is not None and one.fault.kind == "slow" else "both ran"
    return (
        one.title,
        one.outcome,
        ", ".join(one.gates) or one.reason,
        f"{one.seconds:.1f}",
        f"{one.requests:,}",
        f"{one.pairs:,}",
        "" if one.bound is None else f"{one.bound:,.0f} {unit}",
        "" if one.to_zero_s is None else f"{one.to_zero_s:.2f}",
        f"{one.failed:,} of {one.asked:,}",
    )


def _share(found: "Share") -> str:
    return f"{found.hits} of {found.of}, 95 % interval {found.low:.1%} to {found.high:.1%}"
