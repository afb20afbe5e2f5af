"""Hot swaps under load, on a real node started as a user does: no request fails, and memory stays."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil
import pytest

from benchmarks import models
from benchmarks.load import OpenLoopProcess
from benchmarks.node import Node
from benchmarks.peers import JSON, v2_body
from benchmarks.process import resident_mb
from interlock.core.letters import decode_desired
from interlock.core.model import Placement
from interlock.operations.context import opened
from interlock.operations.load import Request
from interlock.operations.register import register
from interlock.operations.release import release_now

ROWS = [6.3, 3.3, 6.0, 2.5]
QUIET_S = 3.0
SETTLED_AFTER = 10
"""Swaps until what is allocated once is allocated."""

Write = Callable[[Path, int], Path]


def iris(path: Path, number: int) -> Path:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    return models.write_iris_onnx(path, LogisticRegression(max_iter=500, C=1.0 / number).fit(rows, labels))


def large(path: Path, number: int) -> Path:
    return models.write_large_onnx(path, 100, seed=number)


def serving(node: Node) -> float:
    """Resident MB of the worker and of the one executor, when the other version's has left."""
    deadline_s = time.monotonic() + 10.0
    while True:
        found: dict[str, list[psutil.Process]] = {"worker": [], "executor": []}
        for process in node.processes():
            with suppress(psutil.NoSuchProcess):
                words = " ".join(process.cmdline())
                for kind, those in found.items():
                    if f"interlock.app.{kind}" in words:
                        those.append(process)
        if len(found["executor"]) <= 1:
            return resident_mb([*found["worker"], *found["executor"]])
        assert time.monotonic() < deadline_s, "the executor of the unloaded version does not leave"
        time.sleep(0.05)


def swap_under_load(node: Node, swaps: int, rate: float, quiet_s: float) -> dict[str, float]:
    """Swap between versions 1 and 2, with requests from another process all the while."""
    request = Request(node.url("/v2/models/model/infer"), v2_body(ROWS), JSON)
    load = OpenLoopProcess(request, rate, 3600, connections=16, spin_us=100, core=None)
    took_s: list[float] = []
    resident: list[float] = []
    try:
        time.sleep(1.0 + quiet_s)  # the generator starts, then the quiet part to compare with
        began_s = time.monotonic()
        for index in range(swaps):
            assert load.running(), load.finish()
            took_s.append(node.swap("model", "1" if index % 2 == 0 else "2"))
            resident.append(serving(node))
        ended_s = time.monotonic()
        result, timeline = load.end()
    finally:
        load.stop()
    quiet, during = timeline.between(began_s - quiet_s, began_s), timeline.between(began_s, ended_s)
    assert result.failures == {} and result.ok == result.sent > rate, result
    assert quiet.p99_ms is not None and during.p99_ms is not None and during.max_ms is not None
    return {
        "requests": result.ok,
        "failed": result.failed,
        "quiet p99 ms": quiet.p99_ms,
        "p99 ms": during.p99_ms,
        "p99 ratio": during.p99_ms / quiet.p99_ms,
        "max ms": during.max_ms,
        "median swap s": median(took_s),
        "max swap s": max(took_s),
        # Two neighbours each, for one of two versions may be the larger one.
        "settled MB": median(resident[SETTLED_AFTER - 2 : SETTLED_AFTER + 2] or resident[:2]),
        "end MB": median(resident[-4:]),
    }


def run(
    home: Path, write: Write, swaps: int, rate: float, placement: Placement, quiet_s: float
) -> dict[str, float]:
    with Node(home, cores="0,1") as node:
        with opened(node.home) as ctx:
            for number in (1, 2):
                register(ctx, "model", write(home.parent / f"v{number}.onnx", number))
            release_now(ctx, "model", "1")
        node.up()
        node.wait_ready("model")
        node.swap("model", "2")  # each was loaded once before it is measured
        desired = decode_desired((home / "run" / "worker-0.desired.json").read_bytes())
        assert desired.models[0].versions[0].placement is placement, "chosen by size"
        seen = swap_under_load(node, swaps, rate, quiet_s)
    print(f"\n{swaps} swaps: " + ", ".join(f"{name} {value:.4g}" for name, value in seen.items()))
    return seen


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("write", "swaps", "rate", "placement"),
    [(iris, 20, 200.0, Placement.INLINE), (large, 3, 100.0, Placement.EXECUTOR)],
    ids=["iris", "100 MB"],
)
def test_swaps_under_load_fail_no_request(
    home_with_store: Path, write: Write, swaps: int, rate: float, placement: Placement
) -> None:
    seen = run(home_with_store, write, swaps, rate, placement, quiet_s=0.5)  # nothing goes by it here
    if swaps > SETTLED_AFTER:
        assert seen["end MB"] < seen["settled MB"] * 1.10 + 2.0


@pytest.mark.server
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("write", "swaps", "rate", "placement"),
    [
        (iris, 200, 500.0, Placement.INLINE),
        (large, 20, 200.0, Placement.EXECUTOR),
        (iris, 1000, 500.0, Placement.INLINE),
    ],
    ids=["200 of iris", "20 of 100 MB", "1000 of iris"],
)
def test_many_swaps_leave_memory_flat_and_p99_bounded(
    home_with_store: Path, write: Write, swaps: int, rate: float, placement: Placement
) -> None:
    seen = run(home_with_store, write, swaps, rate, placement, QUIET_S)
    assert seen["end MB"] < seen["settled MB"] * 1.05 + 2.0
    assert seen["p99 ratio"] < 3.0
