"""A worker with no supervisor and no control: it serves by the Desired on its disk, and leaves well."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock.app.processes import Quarantined
from interlock.app.quarantine import write_quarantine
from interlock.app.sockets import open_data_sockets
from interlock.app.worker import FIRST_LOAD_S
from interlock.core.letters import Desired, ModelDesired, encode
from interlock.core.model import Model, Version, artifact_path
from interlock.core.route import single
from interlock.core.settings import NodeConfig, ProcessArgs, encode_args, run_folder
from tests.app.nodes import put_onnx, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(60)]


class Alone:
    """One worker process; `lifeline` is what the supervisor would hold."""

    def __init__(self, home: Path, *versions: Version) -> None:
        models = tuple(
            ModelDesired(Model(v.model), (v,), single(v.number, 1), {v.number: 1}) for v in versions
        )
        run_folder(home).mkdir(parents=True, exist_ok=True)
        (run_folder(home) / "worker-0.desired.json").write_bytes(encode(Desired("local", 5, models)))
        (listening,) = open_data_sockets("127.0.0.1", 0, 1)
        self.port: int = listening.getsockname()[1]
        reading, self.lifeline = os.pipe()
        args = ProcessArgs(NodeConfig(home, drain_s=3.0), "worker-0", 1, reading, listening.fileno())
        self.log = home / "worker.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "interlock.app.worker", encode_args(args)],
                pass_fds=[reading, listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(reading)
        listening.close()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode())
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def ask(self, model: str) -> tuple[int, Any]:
        data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 1.0]}]}
        status, answer = self.call("POST", f"/v2/models/{model}/infer", data)
        return status, answer["outputs"][0]["data"][0] if status == 200 else answer["error"]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


@pytest.fixture
def alone(interlock_home: Path) -> Iterator[Alone]:
    good, harmed = put_onnx(interlock_home, "good", "1", 2.0), put_onnx(interlock_home, "harmed", "1", 3.0)
    with (artifact_path(interlock_home, harmed.digest) / "model.onnx").open("ab") as file:
        file.write(b"\0")
    worker = Alone(interlock_home, good, harmed)
    yield worker
    worker.stop()


def test_it_serves_what_is_whole_and_says_what_is_not(alone: Alone) -> None:
    began_s = time.monotonic()
    assert alone.ask("good") == (200, 4.0), "the first request waited for the load"
    assert time.monotonic() - began_s < FIRST_LOAD_S, "and not for what cannot be loaded"
    status, message = alone.ask("harmed")
    assert status == 503 and "has digest sha256:" in message
    assert alone.call("GET", "/v2/health/ready")[0] == 200, "a load balancer must not leave the good one"
    assert alone.call("GET", "/v2/models/good/ready")[0] == 200
    assert alone.call("GET", "/v2/models/harmed/ready")[0] == 503
    _, index = alone.call("POST", "/v2/repository/index", {})
    assert {(one["name"], one["state"]) for one in index} == {("good", "READY"), ("harmed", "UNAVAILABLE")}


def test_a_quarantine_comes_and_goes_by_its_file(alone: Alone, interlock_home: Path) -> None:
    assert alone.ask("good") == (200, 4.0)
    _, metadata = alone.call("GET", "/v2/models/good")
    assert metadata["versions"] == ["1"]
    desired = json.loads((run_folder(interlock_home) / "worker-0.desired.json").read_bytes())
    digest = desired["models"][0]["versions"][0]["digest"]
    key = f"good/1@{digest[7:19]}"
    write_quarantine(interlock_home, {key: Quarantined(1, "crashed 5 times")})
    until(lambda: "quarantined: crashed 5 times" in str(alone.ask("good")[1]), "the quarantine")
    write_quarantine(interlock_home, {})
    until(lambda: alone.ask("good") == (200, 4.0), "the end of the quarantine")


@pytest.mark.parametrize("how", ["SIGTERM", "lifeline"])
def test_it_leaves_when_told_to_and_when_its_supervisor_is_gone(alone: Alone, how: str) -> None:
    assert alone.ask("good") == (200, 4.0)
    if how == "SIGTERM":
        alone.process.send_signal(signal.SIGTERM)
    else:
        os.close(alone.lifeline)
        alone.lifeline = -1
    assert alone.process.wait(10) == 0, alone.log.read_text()
    assert "Traceback" not in alone.log.read_text()
