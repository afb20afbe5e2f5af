"""Runs benchmarks: `python -m benchmarks [NAME …]`; prints the table and records the raw results."""

from __future__ import annotations

import argparse
import importlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from benchmarks import envs, peers
from benchmarks.machine import Machine, this_machine, write_result
from benchmarks.pairs import Plan, Row, Verdict, say, table

_HERE = Path(__file__).resolve().parent


class Recorded(msgspec.Struct, frozen=True):
    """A row with what follows from it."""

    row: Row
    median: float
    verdict: Verdict


class Record(msgspec.Struct, frozen=True):
    """One run of one benchmark, as it is kept under `results/`."""

    name: str
    plan: Plan
    machine: Machine
    rows: list[Recorded]
    error: str | None
    peers: dict[str, dict[str, str]]  # pinned packages of each peer that was measured
    took_s: float


def names() -> list[str]:
    """The files bench_NAME.py of this folder that have rows; those without are programs of their own."""
    found = sorted(path.stem.removeprefix("bench_") for path in _HERE.glob("bench_*.py"))
    return [name for name in found if hasattr(_module(name), "run")]


def programs() -> list[str]:
    """The files bench_NAME.py that print figures of their own: `python -m benchmarks.bench_NAME`."""
    found = sorted(path.stem.removeprefix("bench_") for path in _HERE.glob("bench_*.py"))
    return [name for name in found if not hasattr(_module(name), "run")]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.bench_{name}")


def _summary(name: str) -> str:
    return (_module(name).__doc__ or "").partition("\n")[0]


def _run(name: str, plan: Plan, machine: Machine) -> Record:
    began_s = time.monotonic()
    rows: list[Row] = []
    error = None
    say(f"{name}: {_summary(name)}")
    run: Callable[[Plan], Iterator[Row]] = _module(name).run
    try:
        for row in run(plan):
            rows.append(row)
    except Exception as caught:  # the rows so far, and the other benchmarks, are worth keeping
        error = f"{type(caught).__name__}: {caught}"
        say(traceback.format_exc())
    measured = {row.name.removeprefix("throughput-") for row in rows} & set(peers.NAMES)
    return Record(
        name=name,
        plan=plan,
        machine=machine,
        rows=[Recorded(row, row.median, row.verdict) for row in rows],
        error=error,
        peers={peer: envs.versions(peer) for peer in sorted(measured)},
        took_s=round(time.monotonic() - began_s, 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named, or all.

    The exit status is 1 if one could not run, answered wrongly, failed requests or missed a hard minimum.
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description="see benchmarks/README.md")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all without a name")
    arguments.add_argument("--list", action="store_true", help="list the benchmarks and the peers")
    arguments.add_argument("--rounds", type=int, default=5, help="rounds of each pair (5)")
    arguments.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement (4)")
    arguments.add_argument("--peers", default="", help="only these peers of `throughput`, comma-separated")
    arguments.add_argument("--swaps", type=int, default=200, help="hot swaps of iris (200)")
    arguments.add_argument("--large-swaps", type=int, default=20, help="hot swaps of the 100 MB model (20)")
    arguments.add_argument("--json", action="store_true", help="print the records as JSON, not the table")
    arguments.add_argument("--no-record", action="store_true", help="write nothing under results/")
    given = arguments.parse_args(argv)
    if given.list:
        for name in names():
            print(f"{name:12} {_summary(name)}")
        for name in programs():
            print(f"{'':12} python -m benchmarks.bench_{name}: {_summary(name)}")
        for name in peers.NAMES:
            print(f"  peer {name:18} {peers.peer(name).CONFIGURATION}")
        return 0
    chosen_peers = tuple(name for name in given.peers.split(",") if name)
    for kind, chosen, known in (
        ("benchmark", given.names, names()),
        ("peer", chosen_peers, ("hello", *peers.NAMES)),
    ):
        if unknown := [name for name in chosen if name not in known]:
            arguments.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    if given.rounds < 1 or given.seconds <= 0 or given.swaps < 1 or given.large_swaps < 1:
        arguments.error("--rounds, --seconds, --swaps and --large-swaps must be above 0")
    plan = Plan(given.rounds, given.seconds, chosen_peers, given.swaps, given.large_swaps)
    machine = this_machine()
    records = []
    for name in given.names or names():
        records.append(_run(name, plan, machine))
        if not given.no_record:
            say(f"{name}: recorded in {write_result(name, records[-1]).relative_to(_HERE.parent)}")
    if given.json:
        print(msgspec.json.format(msgspec.json.encode(records), indent=1).decode())
    else:
        print(table([recorded.row for record in records for recorded in record.rows]))
        print(
            f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}, "
            f"load before {machine.load_before}, commit {machine.commit}"
        )
    failed = [record for record in records if record.error is not None]
    for record in failed:
        say(f"{record.name} did not finish: {record.error}")
    verdicts = {recorded.verdict for record in records for recorded in record.rows}
    return 1 if failed or verdicts & {"MISSED", "INVALID"} else 0


if __name__ == "__main__":
    raise SystemExit(main())
