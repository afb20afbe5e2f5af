"""Two real workers and a candidate that fails on 5 % of inputs: shielded, no client sees it, and each is
counted."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.helper
import pytest

from interlock.app.sockets import open_data_sockets
from interlock.core.letters import Desired, ModelDesired, encode
from interlock.core.model import Model, Placement, Version
from interlock.core.route import COPY_ARM, Arm, Mirror, Route
from interlock.core.settings import NodeConfig, ProcessArgs, encode_args, run_folder
from interlock.core.state import ArmCounts, ArmKey, PairCounts
from interlock.serving.counters import read_all
from tests.app.nodes import _put, put_onnx, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(90)]

REQUESTS = 400
FAILS_FROM = 95
"""The model cannot answer where the first cell is 95 or more; the test sends 0 to 99 in turn."""


def put_failing(home: Path, model: str, number: str, factor: float) -> Version:
    """x times `factor`; a look-up out of bounds where the first cell is `FAILS_FROM` or more."""
    make, kind = onnx.helper, onnx.TensorProto
    x, y = (make.make_tensor_value_info(n, kind.FLOAT, [None, 2]) for n in ("x", "y"))
    constants = [
        make.make_tensor("factor", kind.FLOAT, [1], [factor]),
        make.make_tensor("bound", kind.FLOAT, [1], [float(FAILS_FROM)]),
        make.make_tensor("first", kind.INT64, [1], [0]),
        make.make_tensor("table", kind.FLOAT, [1], [0.0]),
    ]
    nodes = [
        make.make_node("Mul", ["x", "factor"], ["scaled"]),
        make.make_node("Gather", ["x", "first"], ["cell"], axis=1),
        make.make_node("Div", ["cell", "bound"], ["ratio"]),
        make.make_node("Floor", ["ratio"], ["floor"]),
        make.make_node("Cast", ["floor"], ["index"], to=kind.INT64),
        make.make_node("Gather", ["table", "index"], ["found"]),
        make.make_node("Add", ["scaled", "found"], ["y"]),
    ]
    graph = make.make_graph(nodes, "fails", [x], [y], initializer=constants)
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    content = proto.SerializeToString()
    return _put(home, model, number, "model.onnx", content, "onnx", "model.onnx", Placement.INLINE)


class Workers:
    """Two workers of one node, without supervisor and control, that serve by the Desired on their disk."""

    def __init__(self, home: Path, desired: Desired) -> None:
        run = run_folder(home)
        run.mkdir(parents=True, exist_ok=True)
        sockets = open_data_sockets("127.0.0.1", 0, 2)
        self.port: int = sockets[0].getsockname()[1]
        self.lifelines: list[int] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for index, listening in enumerate(sockets):
            name = f"worker-{index}"
            (run / f"{name}.desired.json").write_bytes(encode(desired))
            reading, lifeline = os.pipe()
            args = ProcessArgs(NodeConfig(home, drain_s=3.0), name, index + 1, reading, listening.fileno())
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "interlock.app.worker", encode_args(args)],
                    pass_fds=[reading, listening.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            )
            self.lifelines.append(lifeline)
            os.close(reading)
            listening.close()

    def ask(self, connection: http.client.HTTPConnection, value: float) -> tuple[int, Any]:
        data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 1.0]}]}
        connection.request("POST", "/v2/models/m/infer", json.dumps(data).encode())
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for lifeline in self.lifelines:
            os.close(lifeline)


@pytest.fixture
def workers(interlock_home: Path) -> Iterator[Workers]:
    good, failing = put_onnx(interlock_home, "m", "1", 2.0), put_failing(interlock_home, "m", "2", 2.0)
    arms = (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5))
    mirror = Mirror(1, shadow=1.0, reverse=1.0, shielded=True)
    model = ModelDesired(Model("m"), (good, failing), Route(5, 2, "s", arms, mirror), {"1": 5, "2": 5})
    workers = Workers(interlock_home, Desired("local", 5, (model,)))
    yield workers
    workers.stop()


def test_no_client_sees_what_a_shielded_candidate_fails(workers: Workers, interlock_home: Path) -> None:
    connections = [http.client.HTTPConnection("127.0.0.1", workers.port, timeout=15) for _ in range(8)]
    answered = {"1": 0, "2": 0}
    for index in range(REQUESTS):
        value = float(index % 100)
        status, answer = workers.ask(connections[index % len(connections)], value)
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [value * 2, 2.0]
        assert answer["model_version"] == "1" or value < FAILS_FROM
        answered[answer["model_version"]] += 1

    def counts(version: str, arm: int) -> ArmCounts:
        key = ArmKey("m", version, 5, 2, arm)
        return read_all(run_folder(interlock_home)).get(key, ArmCounts())

    injected = REQUESTS * (100 - FAILS_FROM) // 100

    def both() -> PairCounts:
        return counts("2", 1).pairs.merge(counts("2", COPY_ARM).pairs)

    until(lambda: both().good + both().worse == REQUESTS, "all pairs")
    pairs, mine = both(), counts("2", 1)
    assert (pairs.worse, pairs.better, pairs.bad, pairs.dropped) == (injected, 0, 0, 0)
    assert pairs.agreed == REQUESTS - injected and pairs.disagreed == 0
    assert pairs.shielded == mine.failed and pairs.unshielded == 0
    assert counts("1", 0).ok + mine.dispatched == REQUESTS
    assert answered["2"] == mine.ok and answered["1"] == counts("1", 0).ok + mine.failed
    copies = counts("2", COPY_ARM)
    assert mine.failed + copies.failed == injected
    assert copies.dispatched == copies.ok + copies.failed == counts("1", 0).ok
    others = counts("1", COPY_ARM)
    assert others.dispatched == others.ok and others.ok >= mine.dispatched
    for connection in connections:
        connection.close()
