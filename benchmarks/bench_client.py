"""What a call of the Python client costs beside tritonclient, on one node in alternating rounds.

    python -m benchmarks.bench_client

Microseconds a call of one thread, one after the other, the median of the rounds, and the ratio of each round.
Caveat: the node is on the same machine and its time is in both figures, so that the ratio is nearer to 1 than
that of the clients alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.http as triton

import interlock
from benchmarks import models
from benchmarks.node import Node, serve
from interlock.core.model import Array


def cost_us(call: Callable[[], object], seconds: float) -> float:
    """The mean of the calls that fit into `seconds`."""
    started_s, calls = time.perf_counter(), 0
    while (took_s := time.perf_counter() - started_s) < seconds:
        call()
        calls += 1
    return took_s / calls * 1e6


def compare(
    title: str, ours: Callable[[], object], theirs: Callable[[], object], plan: argparse.Namespace
) -> None:
    """Print one line."""
    mine: list[float] = []
    others: list[float] = []
    for at in range(plan.rounds):
        for is_ours in (True, False) if at % 2 == 0 else (False, True):
            (mine if is_ours else others).append(cost_us(ours if is_ours else theirs, plan.seconds))
    ratios = [one / other for one, other in zip(mine, others, strict=True)]
    print(
        f"{title:16s} ours {statistics.median(mine):7.0f} us"
        f"   tritonclient {statistics.median(others):7.0f} us"
        f"   {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    plan = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Node(work / "home") as node:
            node.register("iris", models.write_iris_onnx(work / "iris.onnx"))
            node.release("iris")
            serve(node, "image", models.write_image_onnx(work / "image.onnx"))
            host = f"127.0.0.1:{node.http_port}"
            sides = (
                ("one row of iris", "iris", "x", np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)),
                ("600 KB FP32", "image", "image", np.full((1, *models.IMAGE_SHAPE), 7, np.float32)),
            )
            with interlock.Client(f"http://{host}") as mine, triton.InferenceServerClient(host) as other:
                for title, model, name, array in sides:
                    ours = partial(mine.predict, model, array)
                    compare(title, ours, partial(ask_triton, other, model, name, array), plan)


def ask_triton(client: triton.InferenceServerClient, model: str, name: str, array: Array) -> list[Array]:
    """All outputs, as our client reads all of them."""
    tensor = triton.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    answer = client.infer(model, [tensor])
    return [answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]]


if __name__ == "__main__":
    main()
