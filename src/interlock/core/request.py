"""Request and Response, the way answers travel (Sink, Ticket), and the server-made request id."""

import math
from typing import Protocol

import msgspec

from interlock.core.errors import DeadlineInvalid, InterlockError, MalformedMessage
from interlock.core.model import Inputs, ModelSettings, Tensors

PRIORITY_HIGH = 0
PRIORITY_NORMAL = 1
PRIORITY_COPY = 2
"""Copies of requests that another version answers: whatever a client waits for goes first."""
PRIORITIES = 3


class Request(msgspec.Struct, gc=False):
    """One inference, decoded and validated against the signature of the version that will run it.

    `deadline_s` and `received_s` are on the monotonic clock. `client_id` is the caller's own id, echoed and
    never used. `unit` is who sticks to an arm; `tenant` and `segment` are kept for accounting and slices.
    `outputs` names those wanted, None for all. Not frozen only because freezing costs 0.2 us a request;
    nobody writes to it after the wire made it.
    """

    model: str
    inputs: Inputs
    rows: int
    deadline_s: float
    received_s: float
    version: str | None = None
    outputs: tuple[str, ...] | None = None
    client_id: str | None = None
    unit: bytes | None = None
    tenant: bytes | None = None
    segment: bytes | None = None
    priority: int = PRIORITY_NORMAL


class Outputs:
    """What one batch gave, shared by the answers of its requests. `each_one_row`: request i is row i.

    `texts` is for a codec to keep what it made of the whole batch: doing it once costs a third of doing it
    for each answer.
    """

    __slots__ = ("each_one_row", "tensors", "texts")

    def __init__(self, tensors: Tensors, each_one_row: bool = False) -> None:
        self.tensors = tensors
        self.each_one_row = each_one_row
        self.texts: dict[object, list[bytes]] = {}


class Response(msgspec.Struct, gc=False):
    """One answer, or one part of a stream: rows `start` to `stop` of a batch, or all of it (`stop` None)."""

    request_id: bytes
    model: str
    version: str
    batch: Outputs
    start: int = 0
    stop: int | None = None

    @property
    def outputs(self) -> Tensors:
        """This request's own arrays, with its rows on the batch axis."""
        if self.stop is None:
            return self.batch.tensors
        return {name: array[self.start : self.stop] for name, array in self.batch.tensors.items()}


class Sink(Protocol):
    """Where a request's answers go. Called on the event loop: `part` any number of times (only by streaming
    versions), then exactly one of `done` and `fail`; nothing after a cancelled ticket.

    A stream's `done` comes with no outputs: it says that the parts before were all. (To hold back each part
    until it is known whether it is the last would make every one of them late.) `fail` may follow parts. The
    deadline is that of the whole stream."""

    def part(self, response: Response) -> None: ...

    def done(self, response: Response) -> None: ...

    def fail(self, error: InterlockError, request_id: bytes) -> None: ...


class Ticket(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """The caller left: drop this request's own work, never its neighbours'. No-op when settled."""
        ...

    def hold(self) -> None:
        """Let no further part come until `resume`; call it from within `part`, or after one. The model then
        waits, a bounded number of parts ahead; the deadline goes on. No-op before the first part."""
        ...

    def resume(self) -> None:
        """Parts may come again, maybe before this returns."""
        ...


class Tally(Protocol):
    """The cumulative counts of one arm (`state.ArmCounts`), as the infer path writes them. A request is
    dispatched or refused; a dispatched one settles exactly once, well or with one of the kinds that the
    implementation names (invalid, failed, timed out, cancelled). Durations in seconds."""

    def dispatched(self, requests: int = 1) -> None: ...

    def refused(self) -> None: ...

    def settled_ok(self, total_s: float, queue_s: float) -> None: ...

    def all_ok(self, arrived_s: list[float], started_s: float, now: float) -> None: ...

    def settled(self, kind: int, total_s: float) -> None: ...

    def batch(self, rows: int, compute_s: float) -> None: ...


class RequestId(msgspec.Struct, frozen=True):
    """What a server-made id says: enough to attribute late feedback without a look-up.

    `origin` is the incarnation of the worker; (origin, sequence) is unique; `time_ms` is Unix time. `unit`:
    where units stick to an arm, the position of this one (`unit_field`), which is the same for all of its
    requests in one release; else None.
    """

    release: int
    epoch: int
    arm: int
    origin: int
    time_ms: int
    sequence: int
    unit: int | None = None

    def encode(self) -> bytes:
        """Lower-case hexadecimal fields joined by '-', readable and greppable in logs."""
        prefix = id_prefix(self.release, self.epoch, self.arm, self.origin)
        end = b"" if self.unit is None else b"-%x" % self.unit
        return prefix + b"%x-%x" % (self.time_ms, self.sequence) + end


def id_prefix(release: int, epoch: int, arm: int, origin: int) -> bytes:
    """The part of an id that is the same for all requests of one arm in one worker."""
    return b"%x-%x-%x-%x-" % (release, epoch, arm, origin)


def unit_field(position: float) -> int:
    """A unit's position in [0, 1) as an id has it: 48 bits, of which some four units in ten million share
    one with another unit where there are 100 million of them."""
    return int(position * 2**48)


def parse_request_id(text: bytes) -> RequestId:
    """The inverse of `RequestId.encode`.

    Raises: MalformedMessage if it is not an id that this software made.
    >>> parse_request_id(RequestId(7, 3, 1, 10, 1000, 255).encode()).sequence
    255
    """
    fields = text.split(b"-")
    if len(fields) not in (6, 7) or not all(0 < len(f) <= 16 for f in fields):
        raise MalformedMessage(
            f"request id {text[:120]!r} has not the form release-epoch-arm-origin-time-sequence[-unit]"
        )
    try:
        numbers = [int(f, 16) for f in fields]
    except ValueError:
        raise MalformedMessage(f"request id {text[:120]!r} is not hexadecimal") from None
    if any(c not in b"0123456789abcdef-" for c in text):
        raise MalformedMessage(f"request id {text[:120]!r} is not lower-case hexadecimal")
    return RequestId(*numbers)


def deadline(received_s: float, timeout_s: float | None, settings: ModelSettings) -> float:
    """The public deadline contract: the client's time-out counted from the first byte, or the model's
    default; longer than the model's maximum is cut to it.

    Raises: DeadlineInvalid if the time-out is not a positive, finite number.
    >>> deadline(100.0, None, ModelSettings(default_timeout_s=10.0))
    110.0
    """
    if timeout_s is None:
        return received_s + settings.default_timeout_s
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise DeadlineInvalid(f"time-out {timeout_s} s: want a finite number above 0")
    return received_s + min(timeout_s, settings.max_timeout_s)
