"""Starts a real node the way `interlock up` does, with models that fit in a few lines."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import onnx
import onnx.helper
import psutil

from interlock.core.model import (
    Capabilities,
    Placement,
    Signature,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.core.settings import NodeConfig, run_folder
from interlock.operations.discovery import NodeFile, read_node_file
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseRow
from interlock.serving.counters import block_files, owner_is_dead, read_block

WAIT_S = 30.0
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))

PYTHON_MODEL = """
import mmap, os, time
class Model:
    def load(self, folder):
        {on_load}
    def predict(self, inputs):
        if inputs["x"][0, 0] == 13:
            os._exit(13)
        if inputs["x"][0, 0] == 14:
            shared = mmap.mmap(-1, 1 << 30)
            for page in range(0, 1 << 30, 4096):
                shared[page] = 1
            time.sleep(5)
        return {{"y": inputs["x"] * {factor}}}
"""


def until(condition: Callable[[], bool], what: str, within_s: float = WAIT_S) -> float:
    """Poll; returns the seconds that it took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < within_s, f"{what} not within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - started_s


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to take note of its end does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def put_onnx(
    home: Path, model: str, number: str, factor: float, placement: Placement = Placement.INLINE
) -> Version:
    """Record an ONNX version that multiplies by `factor`, as registration would."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 2]) for n in ("x", "y"))
    value = onnx.helper.make_tensor("k", onnx.TensorProto.FLOAT, [1], [factor])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "k"], ["y"])], "scale", [x], [y], initializer=[value]
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return _put(home, model, number, "model.onnx", proto.SerializeToString(), "onnx", "model.onnx", placement)


def put_python(home: Path, model: str, number: str, factor: float, on_load: str = "pass") -> Version:
    """Record a plain Python version that multiplies by `factor`; 13 in the first cell ends its
    process, 14 takes shared memory, of which its own limit does not know."""
    source = PYTHON_MODEL.format(factor=factor, on_load=on_load).encode()
    return _put(home, model, number, "model.py", source, "python", "model.py:Model", Placement.EXECUTOR)


def _put(
    home: Path,
    model: str,
    number: str,
    file: str,
    content: bytes,
    runtime: str,
    entry: str,
    placement: Placement,
) -> Version:
    folder = home / "artifacts" / f"new-{model}-{number}"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    digest = digest_of(folder)
    folder.rename(artifact_path(home, digest))
    version = Version(
        model, number, digest, runtime, entry, SIGNATURE, Capabilities(max_batch_rows=16), placement
    )
    ledger = Ledger(home / "ledger.db")
    ledger.put_version(version, time.time())
    ledger.close()
    return version


class RunningNode:
    """A node in a process of its own; leaving the `with` block stops it and shows its logs if that fails."""

    def __init__(self, home: Path, command: list[str] | None = None, **settings: Any) -> None:
        self.home = home
        self.config = NodeConfig(home=home, **{"http_port": 0, "admin_port": 0, "drain_s": 3.0, **settings})
        argument = msgspec.json.encode(self.config, enc_hook=str).decode()
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "node.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*(command or [sys.executable, "-m", "interlock.app.node"]), argument],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if error is not None:
            for path in [self.log, *sorted((self.home / "logs").glob("*.log"))]:
                print(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}")

    @property
    def node(self) -> NodeFile:
        found = read_node_file(self.home)
        assert found is not None and found.pid == self.process.pid
        return found

    def wait_ready(self, within_s: float = WAIT_S) -> float:
        return until(self.is_ready, "ready", within_s)

    def is_ready(self) -> bool:
        return self.is_up() and self.get("/health/ready")[0] == 200

    def is_up(self) -> bool:
        """Whether its ports are open."""
        assert self.process.poll() is None, self.log.read_text()
        found = read_node_file(self.home)
        return found is not None and found.pid == self.process.pid

    def get(self, path: str) -> tuple[int, bytes]:
        """GET on the admin port; (0, b"") when nobody answers."""
        return self._call(self.node.admin_port, "GET", path, None)

    def infer(self, model: str, value: float = 2.0) -> tuple[int, Any]:
        """Ask with one row [value, 1]; (200, first cell), or the status and the message; (0, "") when cut."""
        data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 1.0]}]}
        status, body = self._call(
            self.node.http_port, "POST", f"/v2/models/{model}/infer", json.dumps(data).encode()
        )
        if status == 0:
            return 0, ""
        answer = json.loads(body)
        return status, answer["outputs"][0]["data"][0] if status == 200 else answer.get("error")

    def answers(self, model: str, wanted: float) -> bool:
        return self.infer(model) == (200, wanted)

    def _call(self, port: int, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
        try:
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def release(self, model: str, number: str, strategy: str = "now") -> ReleaseRow:
        """Ask for a release in the ledger and wait for its end."""
        ledger = Ledger(self.home / "ledger.db")
        try:
            id = ledger.request_release(model, number, strategy, time.time()).id
            until(lambda: ledger.release(id).state.finished, f"release of {model}/{number}")
            return ledger.release(id)
        finally:
            ledger.close()

    def pids(self, name: str = "") -> dict[str, int]:
        """Process name (those that begin with `name`) to pid, of all that live, by their blocks."""
        found = {}
        for path in block_files(run_folder(self.home)):
            view = read_block(path, counts=False)
            if view is not None and not owner_is_dead(path) and view.process.startswith(name):
                found[view.process] = view.pid
        return found

    def kill(self, name: str) -> int:
        """SIGKILL one process of the node; waits until its successor lives. Returns the successor's pid."""
        before = self.pids(name)[name]
        os.kill(before, signal.SIGKILL)
        until(lambda: self.pids(name).get(name, before) != before, f"a new {name}")
        return self.pids(name)[name]
