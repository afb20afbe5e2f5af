"""Measures what an executor adds to a batch over a call in the worker's own loop; prints one line of JSON.

Caveats: one worker and one executor on the machine's cores, a model that does nothing but a sum, batches one
after another (closed loop), the medians of alternating rounds. `added_us` is executor minus inline.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop

from interlock.core.errors import InterlockError
from interlock.core.letters import Desired, ModelDesired, encode, executor_socket
from interlock.core.model import (
    Model,
    Placement,
    Signature,
    Tensors,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.core.settings import NodeConfig, ProcessArgs, encode_args, run_folder
from interlock.runtime.catalog import runtime_of
from interlock.serving.executor import ExecutorPlace
from interlock.serving.placement import Inline, Place

SOURCE = """
class Model:
    def predict(self, inputs):
        return {"y": inputs["x"][:, :1]}
"""
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


def prepare(home: Path) -> Version:
    """A home folder with the artifact and the Desired that the executor starts from."""
    draft = home / "draft"
    draft.mkdir()
    (draft / "model.py").write_text(SOURCE)
    digest = digest_of(draft)
    folder = artifact_path(home, digest)
    folder.parent.mkdir()
    draft.rename(folder)
    version = Version(
        "bench", "1", digest, "python", "model.py:Model", SIGNATURE, placement=Placement.EXECUTOR
    )
    run_folder(home).mkdir()
    desired = Desired("local", 1, (ModelDesired(Model("bench"), (version,), None),))
    (run_folder(home) / "supervisor.desired.json").write_bytes(encode(desired))
    return version


async def batches(place: Place, inputs: Tensors, count: int, depth: int) -> tuple[float, float]:
    """Run `count` batches, `depth` at once: median and total seconds."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    seconds: list[float] = []
    left = count

    def start() -> None:
        nonlocal left
        left -= 1
        begun_s = time.perf_counter()

        def done(result: Tensors | InterlockError, elapsed_s: float) -> None:
            seconds.append(time.perf_counter() - begun_s)
            if not isinstance(result, dict):
                finished.set_exception(result)
            elif left > 0:
                loop.call_soon(start)
            elif len(seconds) == count:
                finished.set_result(None)

        place.run(inputs, None, 1, time.monotonic() + 60.0, done)

    begun_s = time.perf_counter()
    for _ in range(depth):
        start()
    await finished
    return statistics.median(seconds), time.perf_counter() - begun_s


async def measure(home: Path, version: Version, count: int, rounds: int, depth: int) -> dict[str, object]:
    """Alternate inline and executor for each size of input."""
    remote = ExecutorPlace(executor_socket(home, version), version, owner=1, slots=depth)
    await remote.connect(time.monotonic() + 20)
    inline = Inline(runtime_of("python").load(artifact_path(home, version.digest), version))
    figures: dict[str, object] = {}
    for name, columns in (("1x4 float32", 4), ("600 KB float32", 150_000)):
        inputs: Tensors = {"x": np.ones((1, columns), np.float32)}
        target = np.empty((1, columns), np.float32)
        here, there, rate, copies = [], [], [], []
        for _ in range(rounds):
            here.append((await batches(inline, inputs, count, 1))[0])
            median_s, total_s = await batches(remote, inputs, count, depth)
            there.append(median_s)
            rate.append(count / total_s)
            begun_s = time.perf_counter()
            for _ in range(100):
                np.copyto(target, inputs["x"])
            copies.append((time.perf_counter() - begun_s) / 100)
        figures[name] = {
            "inline_us": round(statistics.median(here) * 1e6, 1),
            "executor_us": round(statistics.median(there) * 1e6, 1),
            "added_us": round((statistics.median(there) - statistics.median(here)) * 1e6, 1),
            "best_added_us": round((min(there) - min(here)) * 1e6, 1),
            "batches_per_s": round(statistics.median(rate)),
            "one_copy_us": round(statistics.median(copies) * 1e6, 1),
        }
    await remote.close()
    return figures


def main() -> None:
    """Start an executor, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=1, help="batches at once (the place's slots)")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    options = parser.parse_args()
    if options.loop == "uvloop":
        uvloop.install()
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        version = prepare(home)
        reading, writing = os.pipe()
        args = ProcessArgs(NodeConfig(home), "x-bench-1", 1, reading, version_key=version.key)
        command = [sys.executable, "-m", "interlock.app.executor", encode_args(args)]
        executor = subprocess.Popen(command, pass_fds=[reading], stderr=subprocess.DEVNULL)
        try:
            figures = asyncio.run(measure(home, version, options.count, options.rounds, options.depth))
        finally:
            executor.terminate()
            executor.wait(10)
            os.close(reading)
            os.close(writing)
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "executor_micro", **vars(options), **machine, **figures}))


if __name__ == "__main__":
    main()
