"""Two workers against one, with a model that computes for 2 ms and cannot be batched.

The model must use the core for those 2 ms: one that sleeps would scale on a single core, too, and one that
batches would get cheaper by the row. So it is a chain of sines on a fixed batch of 1
(models.write_busy_onnx). One worker is pinned to core 0 and the client to core 1. Two workers have both
cores, and the client shares core 1 with them: at about 1,000 requests/s it takes a few per cent of it. What
the machine gives to two processes that call `session.run` without a server is measured, too: the ceiling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import models
from benchmarks.node import Node, serve
from benchmarks.pairs import Goal, Plan, Row, Sample, Side, compare
from benchmarks.peers import JSON, ask, v2_body
from benchmarks.sides import direct, wrk_side
from interlock.operations.load import Request

TARGET_MS = 2.0


def run(plan: Plan) -> Iterator[Row]:
    """First the ceiling, then the two nodes."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        artifact = models.write_busy_onnx(work / "busy.onnx", TARGET_MS)
        took_ms = models.run_ms(artifact, {"x": (1, 4096)})
        note = f"the model takes {took_ms:.2f} ms alone"

        def alone(title: str, cores: list[int]) -> Side:
            def measure(seconds: float) -> Sample:
                return Sample(sum(seen.per_s for seen in direct(artifact, 0, seconds, cores)))

            return Side(title, measure)

        yield compare(
            "workers-ceiling",
            "for comparison: session.run in two processes",
            alone("two processes", [0, 1]),
            alone("one process", [0]),
            goal=Goal(),
            plan=plan,
            unit="calls/s",
            note=note,
        )
        with (
            Node(work / "one", workers=1, cores="0") as one,
            Node(work / "two", workers=2, cores="0,1") as two,
        ):
            sides = []
            for node, title, cores in ((two, "two workers", (0, 1)), (one, "one worker", (0,))):
                serve(node, "busy", artifact)
                request = Request(node.url("/v2/models/busy/infer"), v2_body([0.5] * 4096), JSON)
                status, body = ask(request)
                if status != 200:
                    raise RuntimeError(f"Interlock answered {status}: {body[:300]!r}")
                sides.append(wrk_side(title, request, node.processes, cores=cores))
            yield compare(
                "workers", f"model of {TARGET_MS:g} ms", *sides, goal=Goal(1.8, 1.95), plan=plan, note=note
            )
