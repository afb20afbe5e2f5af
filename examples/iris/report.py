"""Decides what the demo's table says, and whether the demo went well; pure."""

from __future__ import annotations

from statistics import median

import msgspec
from rich.table import Table

from examples.iris.node import Swap
from interlock.operations.arrivals import Percentiles
from interlock.operations.load import OpenLoopResult


class Seen(msgspec.Struct, frozen=True):
    """What came of the load and of the swaps under it. Latency counts from the intended send time."""

    load: OpenLoopResult
    before: Percentiles
    during: Percentiles
    swaps: tuple[Swap, ...]


def exit_code(seen: Seen) -> int:
    """0, or 1 if a request failed or none was answered."""
    return 1 if seen.load.failed or not seen.load.ok else 0


def table(seen: Seen) -> Table:
    """Requests, failures, latency before and during the swaps, and the time to swap."""
    load, swaps = seen.load, seen.swaps
    shown = Table(
        title=f"{len(swaps)} swaps at {load.offered_per_s:g} requests/s, open loop", show_header=False
    )
    shown.add_column("")
    shown.add_column("", justify="right")
    shown.add_row("requests", f"{load.sent:,}")
    failures = ", ".join(f"{reason}: {count}" for reason, count in sorted(load.failures.items()))
    shown.add_row("failures", f"{load.failed:,}{f' ({failures})' if failures else ''}")
    shown.add_section()
    shown.add_row("p50, p99 before the swaps", _pair_ms(seen.before))
    shown.add_row("p50, p99 during the swaps", _pair_ms(seen.during))
    shown.add_section()
    took_s = [swap.took_s for swap in swaps]
    command_s = [swap.command_s for swap in swaps]
    shown.add_row("time to swap: median, greatest", f"{_ms(1e3 * median(took_s))}, {_ms(1e3 * max(took_s))}")
    shown.add_row(
        "with the command's own start", f"{_ms(1e3 * median(command_s))}, {_ms(1e3 * max(command_s))}"
    )
    return shown


NOTE = (
    "Time to swap: from control's receipt of the request until every worker acknowledged\n"
    "that it routes to the new version, which includes loading and warming it up.\n"
    "Latency counts from the time at which a request was meant to leave; the load, the\n"
    "commands and the node share the cores of this machine."
)


def _pair_ms(at: Percentiles) -> str:
    return f"{_ms(at.p50_ms)}, {_ms(at.p99_ms)}"


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"
