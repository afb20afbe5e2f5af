"""Iris, one row of JSON, requests per second of one core: against the frozen hello world and every peer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import models, peers
from benchmarks.node import Node, serve
from benchmarks.pairs import Goal, Plan, Row, compare, say
from benchmarks.process import SERVER_CORE, free_port
from benchmarks.sides import reference, wrk_side

GOALS = {
    "triton_python": Goal(4, 5),
    "mlserver_sklearn": Goal(30, 40),
    "litserve_batch": Goal(),
    "bentoml_batch": Goal(),
    "fastapi_naive": Goal(22, 30),
    "fastapi_async": Goal(),
}
_TITLE = "iris JSON, one row"


def run(plan: Plan) -> Iterator[Row]:
    """One row against `reference_hello`, one against each peer of the plan.

    Raises: RuntimeError at the end, naming the peers that could not be measured.
    """
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Node(work / "home") as node:
            serve(node, "iris", models.write_iris_onnx(work / "iris.onnx"))
            if wrong := peers.wrong_answers(node.iris()):
                raise RuntimeError(f"Interlock answers wrongly: {wrong}")
            request = node.iris().request()
            ours = wrk_side("Interlock", request, node.processes)
            if not plan.peers or "hello" in plan.peers:
                with reference("reference_hello.py", work) as (url, server):
                    hello = wrk_side(
                        "hello world",
                        type(request)(url, request.body, request.headers),
                        server.processes,
                        configuration="the same transport; reads the same request, answers a constant",
                    )
                    yield compare("throughput-hello", _TITLE, ours, hello, goal=Goal(0.5, 0.7), plan=plan)
            for name in peers.NAMES:
                if plan.peers and name not in plan.peers:
                    continue
                say(f"{name}: starting")
                try:
                    peer = peers.peer(name)
                    serving = peers.start_verified(name, work / name, free_port(), SERVER_CORE)
                except RuntimeError as error:
                    failed.append(f"{name}: {error}")
                    continue
                try:
                    theirs = wrk_side(
                        peer.TITLE,
                        serving.target.request(),
                        serving.process.processes,
                        configuration=peer.CONFIGURATION,
                    )
                    yield compare(f"throughput-{name}", _TITLE, ours, theirs, goal=GOALS[name], plan=plan)
                finally:
                    serving.stop()
    if failed:
        raise RuntimeError("; ".join(failed))
