"""Hot swaps under open-loop load: failed requests, p99 during the swaps against before, and memory.

Memory is the resident size of the node's processes, summed, after the tenth swap and after the last. The goal
says "flat": here at most 5 % more (hard), 1 % more (stretch).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import models
from benchmarks.load import OpenLoopProcess
from benchmarks.node import Node
from benchmarks.pairs import Goal, Plan, Row, Sample, say
from benchmarks.peers import JSON, v2_body
from benchmarks.process import resident_mb
from benchmarks.request import Request

RATE_PER_S = 500.0
SETTLED_AFTER = 10  # swaps until caches, arenas and the load path itself are warm


class _Seen(msgspec.Struct, frozen=True):
    failed: int
    quiet_p99_ms: float
    during_p99_ms: float
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
    yield from _swaps("iris", _write_iris, plan.swaps, plan.seconds)
    yield from _swaps("100 MB", _write_large, plan.large_swaps, plan.seconds)


def _swaps(title: str, write: Callable[[Path, int], Path], count: int, quiet_s: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Node(work / "home") as node:
            for number in (1, 2):
                node.register("model", write(work / f"v{number}.onnx", number))
            node.release("model", "1")
            node.up()
            node.wait_ready("model")
            node.swap("model", "2")  # each version was loaded once
            seen = _under_load(node, title, count, max(2.0, quiet_s))
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
        "before the swaps",
        "ms",
        [Sample(seen.during_p99_ms, seen.failed)],
        [Sample(seen.quiet_p99_ms)],
        [seen.during_p99_ms / seen.quiet_p99_ms],
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


def _under_load(node: Node, title: str, count: int, quiet_s: float) -> _Seen:
    request = Request(node.url("/v2/models/model/infer"), v2_body([6.3, 3.3, 6.0, 2.5]), JSON)
    # Longer than any run: it is told to stop when the swaps are over.
    load = OpenLoopProcess(request, RATE_PER_S, 3600, connections=32)
    try:
        time.sleep(1.0 + quiet_s)  # one second to start, then the quiet part
        swaps_began_s = time.monotonic()
        took_s: list[float] = []
        settled_mb = 0.0
        for index in range(count):
            if not load.running():
                load.finish()
                raise RuntimeError("the load generator ended before the swaps did")
            took_s.append(node.swap("model", "1" if index % 2 == 0 else "2"))
            if index + 1 == min(SETTLED_AFTER, count):
                settled_mb = resident_mb(node.processes())
            if (index + 1) % max(1, count // 10) == 0:
                say(f"  {title}: {index + 1} of {count} swaps, the last took {took_s[-1]:.2f} s")
        swaps_ended_s = time.monotonic()
        tree = node.processes()
        end_mb = resident_mb(tree)
        seen, timeline = load.end()
    finally:
        load.stop()
    quiet = timeline.between(swaps_began_s - quiet_s, swaps_began_s)
    during = timeline.between(swaps_began_s, swaps_ended_s)
    if quiet.p99_ms is None or during.p99_ms is None:
        raise RuntimeError(f"nothing was answered: {seen.failures}")
    detail = {
        "swap_p50_s": sorted(took_s)[len(took_s) // 2],
        "swap_max_s": max(took_s),
        "sent": seen.sent,
        "failures": seen.failures,
        "p999_ms": during.p999_ms,
        "max_ms": during.max_ms,
        "resident_mb": {str(process.pid): round(resident_mb([process]), 1) for process in tree},
    }
    return _Seen(seen.failed, quiet.p99_ms, during.p99_ms, settled_mb, end_mb, detail)
