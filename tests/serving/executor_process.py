"""Starts a real executor the way the supervisor does, around a model whose first value is a command."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from interlock.core.errors import InterlockError
from interlock.core.letters import Desired, ModelDesired, encode, executor_socket
from interlock.core.model import (
    Capabilities,
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
from interlock.serving.counters import BlockView, block_path, read_block
from interlock.serving.executor import ExecutorPlace

(
    TWICE, SLEEP, HOLD_THE_LOCK, EXIT, GROW, NUMPY_GROW, RAISE, WRONG, HUGE, SYSTEM_EXIT, KILL, SLOW,
    CLOSE_STDOUT, LARGE, FORK, PRINT,
) = range(16)  # fmt: skip

MODEL = """
import os, re, signal, sys, time
import numpy as np
class Model:
    def predict(self, inputs):
        x = inputs["x"]
        command = int(x[0, 0]) if x.size else 0
        if command == 1:
            while True:
                time.sleep(60)
        if command == 2:
            re.match(r"(a+)+$", "a" * 64 + "b")
        if command == 3:
            os._exit(9)
        if command == 4:
            grown = bytearray()
            while True:
                grown += bytes(1 << 20)
        if command == 5:
            np.ones(1 << 36)
        if command == 6:
            raise ValueError("row 0 is poison")
        if command == 7:
            return ["no", "dict"]
        if command == 8:
            return {"y": np.broadcast_to(np.float32(0), (len(x), 1 << 29))}
        if command == 9:
            sys.exit(3)
        if command == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        if command == 11:
            time.sleep(0.3)
        if command == 12:
            sys.stdout.close()
        if command == 13:
            return {"y": np.full((len(x), 1 << 20), x[0, 1], np.float32)}
        if command == 14 and os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        if command == 15:
            print("said by the model")
        return {"y": x * 2}
"""
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


class Executor:
    """One version's executor process, startable again and again, and the block of its last incarnation."""

    def __init__(
        self,
        home: Path,
        source: str = MODEL,
        memory_limit_bytes: int | None = None,
        signature: Signature = SIGNATURE,
        capabilities: Capabilities = Capabilities(),  # noqa: B008
    ) -> None:
        self.home = home
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.py").write_text(source)
            digest = digest_of(folder)
            target = artifact_path(home, digest)
            target.mkdir(parents=True)
            (target / "model.py").write_text(source)
        self.version = Version(
            "m", "1", digest, "python", "model.py:Model", signature, capabilities,
            placement=Placement.EXECUTOR, memory_limit_bytes=memory_limit_bytes,
        )  # fmt: skip
        self.run = run_folder(home)
        self.run.mkdir(parents=True, exist_ok=True)
        self.be(self.version)
        self.log = home / "executor.log"
        self.incarnation = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self.linger_s = 10.0

    def be(self, version: Version) -> None:
        """Execute this version from the next start on."""
        self.version = version
        desired = Desired("local", 1, (ModelDesired(Model(version.model), (version,), None),))
        (self.run / "supervisor.desired.json").write_bytes(encode(desired))
        self.path = executor_socket(self.home, version)

    def start(self, version_key: str | None = None) -> None:
        self.incarnation += 1
        reading, self._lifeline = os.pipe()
        args = ProcessArgs(
            NodeConfig(self.home, drain_s=self.linger_s), "x-m-1", self.incarnation, reading,
            version_key=self.version.key if version_key is None else version_key,
        )  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "interlock.app.executor", encode_args(args)],
                pass_fds=[reading], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(reading)

    def cut_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def wait(self, within_s: float = 20.0) -> int:
        assert self.process is not None
        return self.process.wait(within_s)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.cut_lifeline()

    def block(self) -> BlockView | None:
        return read_block(block_path(self.run, "x-m-1", self.incarnation))

    def place(self, owner: int = 77, slots: int = 1) -> "Watched":
        return Watched(self.path, self.version, owner, slots)


class Watched:
    """An ExecutorPlace with its news, and a predict that waits."""

    def __init__(self, path: Path, version: Version, owner: int, slots: int = 1) -> None:
        self.news: list[tuple[bool, str]] = []
        self.place = ExecutorPlace(path, version, owner, lambda *news: self.news.append(news), slots)

    async def connect(self, within_s: float = 20.0) -> None:
        await self.place.connect(time.monotonic() + within_s)

    def begin(self, inputs: Tensors, kill_after_s: float = 20.0) -> asyncio.Future[Tensors | InterlockError]:
        future: asyncio.Future[Tensors | InterlockError] = asyncio.get_running_loop().create_future()
        kill_at_s = time.monotonic() + kill_after_s
        self.place.run(inputs, None, 1, kill_at_s, lambda result, _: future.set_result(result))
        return future

    def command(self, number: int, kill_after_s: float = 20.0) -> asyncio.Future[Tensors | InterlockError]:
        return self.begin({"x": np.full((1, 4), number, np.float32)}, kill_after_s)

    async def works(self) -> bool:
        answer = await asyncio.wait_for(self.command(TWICE), 20)
        return isinstance(answer, dict) and answer["y"].tolist() == [[0.0] * 4]


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Poll a callable until it is true. Raises: TimeoutError."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {within_s} s: {condition}")
        await asyncio.sleep(0.005)
