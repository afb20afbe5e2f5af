"""What an executor adds to a batch over the same model inline: 600 KB in, one number out.

The executor's own host (serving/executor_host.py) runs in a process of its own; the worker's side
(serving/executor.py) is called from an event loop as a lane calls it, one batch after the other. Each batch
is timed from `run` to `done`. Both are pinned to the server's core, as the server is everywhere here; and,
for comparison, have a core each, where the time to wake a core that sleeps comes on top, twice: 35 to 50 us
each on a virtual machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.models import IMAGE_SHAPE
from benchmarks.pairs import Goal, Plan, Row, Sample, Side, compare
from benchmarks.process import CLIENT_CORE, SERVER_CORE, Started
from interlock.core.errors import InterlockError
from interlock.core.model import Placement, Signature, Tensors, TensorSpec, Version
from interlock.operations.arrivals import percentiles
from interlock.runtime.protocol import Loaded
from interlock.serving.block import Block
from interlock.serving.executor import ExecutorPlace
from interlock.serving.executor_host import Host, listen
from interlock.serving.placement import Inline, Place
from interlock.wire.http import new_loop

VERSION = Version(
    model="image",
    number="1",
    digest="sha256:" + "0" * 64,
    runtime="benchmark",
    entry="",
    signature=Signature(
        (TensorSpec("image", "FP32", (-1, *IMAGE_SHAPE)),), (TensorSpec("value", "FP32", (-1, 1)),)
    ),
    placement=Placement.EXECUTOR,
)


class FirstPixel:
    """A loaded model that costs nothing, so that what is left is the way there and back."""

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """The first value of each row."""
        return {"value": inputs["image"][:, 0, 0, :1].copy()}

    def close(self) -> None:
        """Nothing to give back."""


def run(plan: Plan) -> Iterator[Row]:
    """The goal's row, and the same on one shared core."""
    loaded: Loaded = FirstPixel()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        for name, title, core, goal in (
            (
                "executor",
                "added per batch, one core for both",
                SERVER_CORE,
                Goal(150, 60, "lower"),
            ),
            ("executor-apart", "for comparison: added, a core each", CLIENT_CORE, Goal()),
        ):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "executor.sock"
                host = Started(
                    [sys.executable, "-m", "benchmarks.bench_executor", str(path)],
                    cores=core,
                    log=Path(folder) / "host.log",
                )
                try:
                    yield compare(
                        name,
                        f"600 KB, executor: {title}",
                        Side("executor", lambda seconds, path=path: _on_loop(_executor(path, seconds))),  # type: ignore[misc]
                        Side("inline", lambda seconds: _on_loop(_timed(Inline(loaded), seconds))),
                        goal=goal,
                        plan=plan,
                        unit="us",
                        score=lambda executor_us, inline_us: executor_us - inline_us,
                        score_unit="us",
                        note="p50 of run to done",
                    )
                finally:
                    host.stop()
    finally:
        os.sched_setaffinity(0, allowed)


def _on_loop(work: Coroutine[None, None, Sample]) -> Sample:
    """The result of `work` on the loop that workers have."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)


async def _executor(path: Path, seconds: float) -> Sample:
    place = ExecutorPlace(path, VERSION, owner=time.monotonic_ns())
    await place.connect(time.monotonic() + 30)
    try:
        return await _timed(place, seconds)
    finally:
        await place.close()


async def _timed(place: Place, seconds: float) -> Sample:
    """Batches one after the other for so long; p50 in microseconds."""
    loop = asyncio.get_running_loop()
    inputs = {"image": np.full((1, *IMAGE_SHAPE), 7, dtype=np.float32)}
    times_ms: list[float] = []
    failures = 0
    end_s = time.monotonic() + seconds
    while (began_s := time.monotonic()) < end_s:
        answered: asyncio.Future[tuple[Tensors | InterlockError, float]] = loop.create_future()
        place.run(
            inputs,
            None,
            1,
            began_s + 10,
            lambda result, _took_s, to=answered: to.set_result((result, time.monotonic())),  # type: ignore[misc]
        )
        result, done_s = await answered
        times_ms.append(1e3 * (done_s - began_s))
        failures += int(isinstance(result, InterlockError) or bool(result["value"][0, 0] != 7))
    seen = percentiles(times_ms)
    assert seen.p50_ms is not None
    return Sample(1e3 * seen.p50_ms, failures, {"batches": len(times_ms), **msgspec.structs.asdict(seen)})


def main() -> None:
    """The executor's process. Argument: the path of its socket."""
    path = Path(sys.argv[1])
    block = Block.create(path.parent, "executor", time.monotonic_ns(), rows=1, most_rows=1)
    Host(listen(path), VERSION, block).serve(FirstPixel())


if __name__ == "__main__":
    main()
