"""What Interlock adds to a direct `session.run` at 1,000 requests/s, open loop: p50 and p99."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import models, peers
from benchmarks.node import Node, serve
from benchmarks.pairs import Goal, Plan, Row, also, compare
from benchmarks.sides import direct_side, open_side, reference
from interlock.operations.load import Request

RATE_PER_S = 1000.0
NOTE = "latency from the intended send time, minus the same percentile of session.run alone at the same rate"


def added(ours_ms: float, theirs_ms: float) -> float:
    """Milliseconds more."""
    return ours_ms - theirs_ms


def run(plan: Plan) -> Iterator[Row]:
    """Added p50 and p99; and what of it the hello world already adds: loopback and the client itself."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        artifact = models.write_iris_onnx(work / "iris.onnx")
        alone = direct_side(artifact, RATE_PER_S)
        for_p99 = Goal(3, 1.5, "lower")
        with Node(work / "home") as node:
            serve(node, "iris", artifact)
            if wrong := peers.wrong_answers(node.iris()):
                raise RuntimeError(f"Interlock answers wrongly: {wrong}")
            request = node.iris().request()
            ours = open_side("Interlock", request, RATE_PER_S)
            row = compare(
                "latency-p50",
                "added p50 at 1,000/s",
                ours,
                alone,
                goal=Goal(0.4, 0.2, "lower"),
                plan=plan,
                unit="ms",
                score=added,
                score_unit="ms",
                note=NOTE,
            )
            yield row
            yield also(row, "latency-p99", "added p99 at 1,000/s", "p99_ms", added, for_p99)
        with reference("reference_hello.py", work) as (url, _server):
            hello = open_side("hello world", Request(url, request.body, request.headers), RATE_PER_S)
            title = "for comparison: hello's added {} at 1,000/s"
            row = compare(
                "latency-hello-p50",
                title.format("p50"),
                hello,
                alone,
                goal=Goal(),
                plan=plan,
                unit="ms",
                score=added,
                score_unit="ms",
                note="the floor: the transport alone",
            )
            yield row
            yield also(row, "latency-hello-p99", title.format("p99"), "p99_ms", added, Goal())
