"""What each feature of the data plane adds to a request: the whole path in one process, with and without it.

    python -m benchmarks.bench_cost [ROUNDS]

32 connections send one row of iris each, in one turn of the loop, through transport, protocol, admission,
lane and ONNX Runtime; only the kernel is left out. Variants run in turn, round by round; a feature's cost is
the median over the rounds of the difference to the whole path. Caveats: warm caches, batches of 32, and costs
that overlap are counted once each, so the sum is not exactly what a server without all of them would save.

What releases by evidence add to every request is summed for itself: the choice of a version (during a canary
only; of a candidate that gets one request in a thousand, so that batches stay whole), the id that says which
it was, and the counters, which are all that a worker does for evidence.
"""

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks import models
from benchmarks.machine import Machine, this_machine, write_result
from benchmarks.pairs import Cost, cost_table
from interlock.codec.v2infer import Codec, Decoded
from interlock.core.errors import OutputMismatch
from interlock.core.expected import Expected
from interlock.core.model import Model, Signature, Tensors, Version
from interlock.core.request import Request
from interlock.core.route import Arm, Route, single
from interlock.runtime.onnx import runtime
from interlock.serving.block import Block, Slot
from interlock.serving.infer import Infer, Target
from interlock.serving.lane import Lane
from interlock.serving.placement import Inline
from interlock.wire.http import HttpServer, new_loop
from interlock.wire.http_connection import Connection
from interlock.wire.v2 import V2

CONNECTIONS = 32
TICKS = 100
GOAL_US = 4.0
_DECODE = msgspec.json.Decoder().decode
BODY = b'{"inputs":[{"name":"%b","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'

RELEASE_GOAL_US = 1.5
Feature = Literal[
    "route choice",
    "counters and histograms",
    "request ids",
    "input check",
    "output check",
    "crash breadcrumb",
]
OF_RELEASES: tuple[Feature, ...] = ("route choice", "request ids", "counters and histograms")
FEATURES: tuple[Feature, ...] = (
    "route choice",
    "counters and histograms",
    "request ids",
    "input check",
    "output check",
    "crash breadcrumb",
)


class Uncounted(Slot):
    """Counts nothing."""

    def dispatched(self, requests: int = 1) -> None:
        return

    def all_ok(self, arrived_s: list[float], started_s: float, now: float) -> None:
        return

    def batch(self, rows: int, compute_s: float) -> None:
        return


class WithoutId(Target):
    """Gives every request the same id."""

    def ids(self, jobs: Sequence[tuple[Request, object]]) -> Iterator[bytes]:
        return repeat(b"0-0-0-0-0-0")


class Trusting(Codec):
    """Takes any JSON for a request of one row."""

    def decode(self, body: bytes | memoryview, header_length: int | None) -> Decoded:
        message = _DECODE(body)
        answer = self._all_json or self._answer(False)
        return {self._row_name: message["inputs"][0]["data"]}, 1, answer, message.get("id"), None


class Unchecked(Expected):
    """Takes any output for the right one."""

    def wrong(self, outputs: Tensors, wanted: tuple[str, ...] | None, rows: int) -> OutputMismatch | None:
        return None


class Wire(asyncio.Transport):
    """Takes what is written, counts good answers and forgets them."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += data[9:12] == b"200"

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Path32:
    """The whole path for 32 connections, without one feature (None: with all that is on while nothing is
    released); "route choice": with that too, in a canary."""

    def __init__(self, folder: Path, version: Version, without: Feature | None) -> None:
        block = Block.create(folder / (without or "all").replace(" ", "-"), "worker-0", 1)
        crumb = None if without == "crash breadcrumb" else self._crumb(block)
        lane = Lane(version, Model("iris").settings, Inline(runtime.load(folder, version)), crumb)
        if without == "output check":
            lane._expected = Unchecked(version.signature)
        infer = Infer(block, 7, dict)
        if without == "counters and histograms":
            block.slot = lambda key: Uncounted(key, memoryview(b""))  # type: ignore[method-assign]
        if without == "route choice":
            arms = Arm(0, "incumbent", "1", 0.999), Arm(1, "candidate", "2", 0.001)
            infer.swap(Model("iris"), Route(1, 1, "s", arms, sticky=False), {"1": lane, "2": lane})
        else:
            infer.swap(Model("iris"), single("1", 1), {"1": lane})
        if without == "request ids":
            entry = infer._entries["iris"]
            kept = entry.only
            assert kept is not None
            entry.only = WithoutId(
                kept.model,
                lane,
                kept.settings,
                single("1", 1),
                Arm(0, "incumbent", "1", 1.0),
                kept.slot,
                b"",
                infer,
            )
        if without == "input check":
            trusting = infer._entries["iris"].only
            assert trusting is not None
            trusting.codec = Trusting("iris", "1", version.signature)
        server = HttpServer(V2(infer))
        self._connections = []
        for _ in range(CONNECTIONS):
            connection, wire = Connection(server), Wire()
            connection.connection_made(wire)
            self._connections.append((connection, wire))
        body = BODY % version.signature.inputs[0].name.encode()
        head = b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._message = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        self._sent = 0

    @staticmethod
    def _crumb(block: Block) -> Callable[[str, int], None]:
        def crumb(key: str, requests: int) -> None:
            if requests:
                block.running(key, requests)
            else:
                block.idle()

        return crumb

    async def tick_us(self) -> float:
        """Microseconds a request, the median of some ticks."""
        took = []
        for _ in range(TICKS):
            began = time.perf_counter()
            for connection, _wire in self._connections:
                connection.data_received(self._message)
            for _look in range(3):  # at the sockets, before the turn is taken
                await asyncio.sleep(0)
            took.append(time.perf_counter() - began)
            self._sent += 1
        if any(wire.writes != self._sent for _connection, wire in self._connections):
            raise RuntimeError("not every request was answered in its own turn of the loop")
        return statistics.median(took) / CONNECTIONS * 1e6


async def measure(rounds: int) -> tuple[float, list[Cost]]:
    """Microseconds of the whole path, and what each feature takes of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = models.write_iris_onnx(folder / "model.onnx")
        signature = runtime.inspect(folder, _version(path, Signature((), ())), None)
        version = _version(path, signature)
        whole = Path32(folder, version, None)
        variants = {feature: Path32(folder, version, feature) for feature in FEATURES}
        await whole.tick_us()
        totals: list[float] = []
        saved: dict[Feature, list[float]] = {feature: [] for feature in FEATURES}
        for _ in range(rounds):
            for feature, variant in variants.items():
                stands = await whole.tick_us()
                other = await variant.tick_us()
                saved[feature].append(other - stands if feature == "route choice" else stands - other)
                totals.append(stands)
    costs = [Cost(str(f), statistics.median(us), min(us), max(us)) for f, us in saved.items()]
    return statistics.median(totals), costs


def _version(path: Path, signature: Signature) -> Version:
    return Version("iris", "1", "sha256:" + "0" * 64, "onnx", path.name, signature)


class Record(msgspec.Struct, frozen=True):
    """What is kept of one run."""

    machine: Machine
    rounds: int
    whole_us: float
    costs: list[Cost]
    goal_us: float = GOAL_US


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    machine = this_machine()
    gc.set_threshold(50_000, 20, 50)  # as a worker does
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        whole_us, costs = runner.run(measure(rounds))
    print(cost_table(costs, GOAL_US))
    of_releases = sum(cost.median_us for cost in costs if cost.feature in OF_RELEASES)
    print(
        f"of releases ({', '.join(OF_RELEASES)}): {of_releases:.2f} us a request, "
        f"{'within' if of_releases <= RELEASE_GOAL_US else 'ABOVE'} the goal of {RELEASE_GOAL_US:g}"
    )
    print(f"the whole path without the kernel: {whole_us:.2f} us a request")
    kept = write_result("cost", Record(machine, rounds, whole_us, costs))
    print(f"cost: recorded in benchmarks/results/{kept.name}")


if __name__ == "__main__":
    main()
