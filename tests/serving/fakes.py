"""Stands in for what a lane is wired to: items, a place that obeys the test, a sink that remembers."""

from collections.abc import Hashable
from math import inf
from typing import Protocol

import numpy as np

from interlock.core.errors import InterlockError
from interlock.core.model import (
    Capabilities,
    Signature,
    Tensors,
    TensorSpec,
    Version,
)
from interlock.core.request import Request, Response, Tally
from interlock.serving.call import Call
from interlock.serving.lane import Lane
from interlock.serving.placement import Outcome


class FakeItem:
    """An item of the batcher, and nothing else."""

    def __init__(
        self,
        rows: int = 1,
        deadline_s: float = inf,
        priority: int = 1,
        key: Hashable = None,
        arrived_s: float = 0.0,
    ) -> None:
        self.rows = rows
        self.deadline_s = deadline_s
        self.priority = priority
        self.key = key
        self.arrived_s = arrived_s
        self.gone = False
        self.running = False

    def __repr__(self) -> str:
        return f"<{self.rows} rows of {self.key!r}, priority {self.priority}, until {self.deadline_s}>"


class FakeBatch:
    """A batch that a FakePlace was given and has not ended yet."""

    def __init__(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.requests = requests
        self.kill_at_s = kill_at_s
        self.ended = False
        self._done = done

    @property
    def rows(self) -> int:
        return len(self.inputs["x"])

    @property
    def values(self) -> list[float]:
        """The first column of the input: what tells the rows of different requests apart."""
        return [float(value) for value in self.inputs["x"][:, 0]]

    def end(self, result: Tensors | InterlockError | None = None, compute_s: float = 0.001) -> None:
        """Give the outputs (by default the inputs times two), or the error."""
        assert not self.ended
        self.ended = True
        self._done(twice(self.inputs) if result is None else result, compute_s)


class FakePlace:
    """Runs nothing: keeps each batch until the test ends it. With `answer` it ends them at once, as the
    inline place does. Holds the lane to its slots."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.connected = True
        self.instant = False
        self.closed = False
        self.batches: list[FakeBatch] = []
        self.answer: InterlockError | None | bool = False
        self.calls = 0

    @property
    def running(self) -> list[FakeBatch]:
        return [batch for batch in self.batches if not batch.ended]

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        assert not self.closed and len(self.running) < self.slots
        self.calls += 1
        batch = FakeBatch(inputs, outputs, requests, kill_at_s, done)
        self.batches = [*self.running, batch]
        if self.answer is not False:
            batch.end(self.answer if isinstance(self.answer, InterlockError) else None)

    async def close(self) -> None:
        self.closed = True


class FakeSink:
    """Remembers what it was told, and that it was told once."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.error: InterlockError | None = None

    @property
    def settled(self) -> bool:
        return self.response is not None or self.error is not None

    def part(self, response: Response) -> None:
        raise AssertionError(f"a part nobody asked for: {response}")

    def done(self, response: Response) -> None:
        assert not self.settled
        self.response = response

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        assert not self.settled
        self.error = error


class Hears(Protocol):
    """A sink that remembers why it was failed."""

    error: InterlockError | None

    def part(self, response: Response) -> None: ...
    def done(self, response: Response) -> None: ...
    def fail(self, error: InterlockError, request_id: bytes) -> None: ...


def begin(lane: Lane, request: Request, sink: Hears, request_id: bytes, tally: Tally) -> Call:
    """Start one request, to run when the loop turns. Raises what it is refused with."""
    (ticket,) = lane.start([(request, sink)], iter([request_id]), tally)
    if ticket is None:
        assert sink.error is not None
        raise sink.error
    assert isinstance(ticket, Call)
    lane._loop.call_soon(lane.step)
    return ticket


def twice(inputs: Tensors) -> Tensors:
    """What the model of `a_version` answers."""
    return {"y": inputs["x"] * np.float32(2)}


def a_version(
    model: str = "m",
    number: str = "1",
    *,
    width: int = 2,
    batch_axis: int | None = 0,
    digest: str = "",
    **capabilities: object,
) -> Version:
    """x FP32 [rows, width] to y FP32 [rows, width]; width -1: any."""
    rows = -1 if batch_axis == 0 else 1
    signature = Signature(
        (TensorSpec("x", "FP32", (rows, width)),), (TensorSpec("y", "FP32", (rows, width)),), batch_axis
    )
    return Version(
        model,
        number,
        "sha256:" + (digest or f"{model}{number}".encode().hex()).ljust(64, "0")[:64],
        "onnx",
        "model.onnx",
        signature,
        Capabilities(**{"max_batch_rows": 8, **capabilities}),  # type: ignore[arg-type]
    )


def a_request(
    values: list[float],
    received_s: float,
    deadline_s: float,
    *,
    width: int = 2,
    outputs: tuple[str, ...] | None = None,
    priority: int = 1,
) -> Request:
    """One row for each value, which fills it."""
    x = np.repeat(np.asarray(values, np.float32)[:, None], width, axis=1)
    return Request("m", {"x": x}, len(values), deadline_s, received_s, outputs=outputs, priority=priority)
