"""Calls a model in this process, without any server: the floor under every latency. Prints JSON.

python -m benchmarks.direct iris.onnx --rate 1000 --seconds 4
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.models import session
from interlock.operations.arrivals import Percentiles, percentiles


class DirectResult(msgspec.Struct, frozen=True):
    """Calls per second and how long a call took."""

    per_s: float
    latency: Percentiles


def call(path: Path, rate: float, seconds: float) -> DirectResult:
    """Run the ONNX model with one row of ones, `rate` times a second (0: without a pause)."""
    running = session(path)
    feed = {
        tensor.name: np.ones([d if isinstance(d, int) else 1 for d in tensor.shape], dtype=np.float32)
        for tensor in running.get_inputs()
    }
    for _warm_up in range(20):
        running.run(None, feed)
    times_ms = []
    began_s = due_s = time.monotonic()
    while due_s < began_s + seconds:
        if (pause_s := due_s - time.monotonic()) > 0:
            time.sleep(pause_s)
        start_s = time.monotonic()
        running.run(None, feed)
        end_s = time.monotonic()
        times_ms.append(1e3 * (end_s - start_s))
        due_s = due_s + 1 / rate if rate else end_s
    return DirectResult(len(times_ms) / (time.monotonic() - began_s), percentiles(times_ms))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one `DirectResult`."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.direct")
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--rate", type=float, default=0.0, help="calls per second; 0: as many as it can")
    arguments.add_argument("--seconds", type=float, default=4.0)
    given = arguments.parse_args(argv)
    print(msgspec.json.encode(call(given.model, given.rate, given.seconds)).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
