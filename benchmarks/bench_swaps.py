"""Hot swaps under open-loop load: failed requests, p99 during the swaps against between them, and memory.

Quiet spells and spells of swaps, one after another without a pause, alternate: the score of a round is the
ratio of its two p99, so that what disturbs the machine disturbs both. Memory is the resident size of the
node's processes, summed, after the tenth swap and after the last. The goal says "flat": here at most 5 % more
(hard), 1 % more (stretch).
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import models
from benchmarks.load import OpenLoopProcess
from benchmarks.node import Node
from benchmarks.pairs import Goal, Plan, Row, Sample, say
from benchmarks.peers import JSON, v2_body
from benchmarks.process import CLIENT_CORE, resident_mb
from interlock.operations.arrivals import Percentiles
from interlock.operations.load import Request

RATE_PER_S = 500.0
SETTLED_AFTER = 10  # swaps until caches, arenas and the load path itself are warm


class _Spell(msgspec.Struct, frozen=True):
    quiet: Percentiles
    during: Percentiles
    swaps_s: list[float]


class _Seen(msgspec.Struct, frozen=True):
    failed: int
    spells: list[_Spell]
    settled_mb: float
    end_mb: float
    detail: dict[str, Any]


def _write_large(path: Path, number: int) -> Path:
    return models.write_large_onnx(path, 100, seed=number)


def _write_iris(path: Path, number: int) -> Path:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    return models.write_iris_onnx(path, LogisticRegression(max_iter=1000, C=1.0 / number).fit(rows, labels))


def run(plan: Plan) -> Iterator[Row]:
    """Three rows for iris, three for a model of 100 MB."""
    yield from _swaps("iris", _write_iris, plan.swaps, plan)
    yield from _swaps("100 MB", _write_large, plan.large_swaps, plan)


def _swaps(title: str, write: Callable[[Path, int], Path], count: int, plan: Plan) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Node(work / "home") as node:
            for number in (1, 2):
                node.register("model", write(work / f"v{number}.onnx", number))
            node.release("model", "1")
            node.up()
            node.wait_ready("model")
            node.swap("model", "2")  # each version was loaded once
            node.settle()
            seen = _under_load(node, title, count, min(plan.rounds, count), max(2.0, plan.seconds))
    name, under = title.replace(" ", "").lower(), f"{RATE_PER_S:g}/s"
    yield Row(
        f"swaps-{name}-failed",
        f"{count} swaps of {title} at {under}: failed",
        "none",
        "requests",
        [Sample(seen.failed, 0, seen.detail)],
        [],
        [float(seen.failed)],
        "failed",
        Goal(0, 0, "lower"),
    )
    yield Row(
        f"swaps-{name}-p99",
        f"{count} swaps of {title} at {under}: p99",
        "between the swaps",
        "ms",
        # A failure has no latency: with one, whatever the others took proves nothing.
        [Sample(_p99_ms(spell.during), seen.failed, {"swaps_s": spell.swaps_s}) for spell in seen.spells],
        [Sample(_p99_ms(spell.quiet)) for spell in seen.spells],
        [_p99_ms(spell.during) / _p99_ms(spell.quiet) for spell in seen.spells],
        goal=Goal(3, 1.5, "lower"),
    )
    yield Row(
        f"swaps-{name}-memory",
        f"{count} swaps of {title}: resident",
        f"after swap {min(SETTLED_AFTER, count)}",
        "MB",
        [Sample(seen.end_mb, seen.failed)],
        [Sample(seen.settled_mb)],
        [seen.end_mb / seen.settled_mb],
        goal=Goal(1.05, 1.01, "lower"),
    )


def _p99_ms(seen: Percentiles) -> float:
    if seen.p99_ms is None:
        raise RuntimeError("nothing was answered in one of the spells")
    return seen.p99_ms


def _under_load(node: Node, title: str, count: int, rounds: int, quiet_s: float) -> _Seen:
    request = Request(node.url("/v2/models/model/infer"), v2_body([6.3, 3.3, 6.0, 2.5]), JSON)
    # Longer than any run: it is told to stop when the swaps are over.
    load = OpenLoopProcess(request, RATE_PER_S, 3600, connections=32)
    try:
        time.sleep(1.0)
        with ThreadPoolExecutor(1, initializer=_out_of_the_way) as asking:
            swaps = asking.submit(_swap_in_rounds, node, load, title, count, rounds, quiet_s)
            spells_s, took_s, settled_mb = swaps.result()
        tree = node.processes()
        end_mb = resident_mb(tree)
        seen, timeline = load.end()
    finally:
        load.stop()
    spells = [
        _Spell(timeline.between(began - quiet_s, began), timeline.between(began, ended), took_s[first:last])
        for began, ended, first, last in spells_s
    ]
    during = [spell.during for spell in spells]
    detail = {
        "swap_p50_s": sorted(took_s)[len(took_s) // 2],
        "swap_max_s": max(took_s),
        "sent": seen.sent,
        "failures": seen.failures,
        "generator_lag_ms": seen.lag,
        "p999_ms": [one.p999_ms for one in during],
        "max_ms": [one.max_ms for one in during],
        "resident_mb": {str(process.pid): round(resident_mb([process]), 1) for process in tree},
    }
    return _Seen(seen.failed, spells, settled_mb, end_mb, detail)


def _swap_in_rounds(
    node: Node, load: OpenLoopProcess, title: str, count: int, rounds: int, quiet_s: float
) -> tuple[list[tuple[float, float, int, int]], list[float], float]:
    """When each spell of swaps began and ended and which swaps it held; how long each took; memory after the
    tenth."""
    spells: list[tuple[float, float, int, int]] = []
    took_s: list[float] = []
    settled_mb = 0.0
    for turn in range(rounds):
        time.sleep(quiet_s)
        first, last = count * turn // rounds, count * (turn + 1) // rounds
        began_s = time.monotonic()
        for index in range(first, last):
            if not load.running():
                load.finish()
                raise RuntimeError("the load generator ended before the swaps did")
            took_s.append(node.swap("model", "1" if index % 2 == 0 else "2"))
            if index + 1 == min(SETTLED_AFTER, count):
                settled_mb = resident_mb(node.processes())
        spells.append((began_s, time.monotonic(), first, last))
        say(f"  {title}: {last} of {count} swaps, the last took {took_s[-1]:.2f} s")
    return spells, took_s, settled_mb


def _out_of_the_way() -> None:
    """The calling thread, which asks for the swaps, keeps off the server's core, and behind the generator of
    load on its own: what it still disturbs is charged to the swaps."""
    thread = threading.get_native_id()
    with suppress(OSError, AttributeError):
        os.sched_setaffinity(thread, {CLIENT_CORE})
        os.setpriority(os.PRIO_PROCESS, thread, 19)
