"""Owns one client's request that two versions may run: the client is answered once, the pair counted once.

The client's own run is `mine`, that of the copy is `theirs`. A client that the candidate fails may be given
the incumbent's answer (a shield): from the copy where there is a good one, else from a run for the purpose,
a rescue. A rescue is never one half of a pair: it is made because the candidate failed, so counting it would
count failures more often than successes. All methods are for the worker's event loop.
"""

from typing import Protocol

from interlock.core.errors import DeadlineExceeded, InterlockError, InvalidRequest, Unavailable
from interlock.core.request import Outputs, Request, Response, Sink, Ticket
from interlock.serving.block import SHIELDED, UNSHIELDED, Slot
from interlock.serving.call import Call

PENDING, WELL, FAULTY, INVALID, VOID = range(5)
"""What became of a run. VOID: it never ran, or its client left first."""


class Run:
    """One run of the request, when it has been answered: what, and in which batch. `rows` 0: of a batch whose
    time is not known."""

    __slots__ = ("compute_s", "response", "rows", "serial")

    def __init__(self, response: Response, serial: int, rows: int, compute_s: float) -> None:
        self.response = response
        self.serial = serial
        self.rows = rows
        self.compute_s = compute_s


class Home(Protocol):
    """What a pair needs of the target that it was made by."""

    shielded: bool
    is_candidate: bool
    pairs: Slot
    was_unsent: bool

    def ran(self, response: Response, of_copy: bool) -> Run: ...
    def answering(self, copies: bool) -> None: ...
    def next_id(self, request: Request) -> bytes: ...
    def rescue(self, pair: "Pair") -> None: ...
    def guard(self, pair: "Pair", until_s: float) -> None: ...
    def dropped(self, pair: "Pair") -> None: ...
    def ended(self, pair: "Pair") -> None: ...


class Pair:
    """The sink of the client's own run, and the client's ticket. `wanted`: the incumbent's answer will do."""

    __slots__ = (
        "answered",
        "asked",
        "copied",
        "copy",
        "copy_run",
        "error",
        "home",
        "mine",
        "request",
        "request_id",
        "rescue",
        "rescue_over",
        "run",
        "sink",
        "theirs",
        "ticket",
        "wanted",
    )

    def __init__(self, home: Home, request: Request, sink: Sink, is_drawn: bool) -> None:
        self.home = home
        self.request = request
        self.sink = sink
        self.mine = PENDING
        self.theirs = PENDING if is_drawn else VOID
        self.answered = False
        self.wanted = False
        self.asked = False
        self.copied = False
        self.rescue_over = False
        self.ticket: Ticket | None = None
        self.copy: Call | None = None
        self.rescue: Ticket | None = None
        self.run: Run | None = None
        self.copy_run: Run | None = None
        self.error: InterlockError | None = None
        self.request_id = b""

    # --- the client's own run ---

    def part(self, response: Response) -> None:
        """Versions that stream are not mirrored."""
        self.sink.part(response)

    def done(self, response: Response) -> None:
        home = self.home
        self.mine = WELL
        if self.theirs is not VOID:
            self.run = home.ran(response, of_copy=False)
        if not self.answered:
            self.answered = True
            home.was_unsent = False
            self.sink.done(response)
            if home.was_unsent:
                self.mine = FAULTY
            if self.rescue is not None:
                self.rescue.cancel()
        home.ended(self)

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        home = self.home
        self.mine = kind_of(error, request_id)
        if not request_id and home.is_candidate and isinstance(error, Unavailable):
            self.mine = (
                FAULTY  # its queue was full, or too slow: the route had chosen it, and it did not answer
            )
        if not self.answered:
            if home.shielded and (request_id or _is_busy(error)):
                self.error, self.request_id = error, request_id
                self.want()
            else:
                self.answered = True
                self.sink.fail(error, request_id)
        home.ended(self)

    # --- the copy, which its own sink tells of ---

    def copy_done(self, response: Response) -> None:
        self.theirs = WELL
        self.copy_run = self.home.ran(response, of_copy=True)
        if self.wanted and not self.answered:
            self._shield(response)
        self.home.ended(self)

    def copy_failed(self, error: InterlockError, request_id: bytes) -> None:
        copy = self.copy
        if not request_id or (isinstance(error, DeadlineExceeded) and copy is not None and not copy.running):
            # Nobody tried it: it had to yield to what clients wait for.
            self.home.dropped(self)
        else:
            self.theirs = kind_of(error, request_id)
            self.rescue_over = self.rescue_over or self.rescue is None  # once more would fail once more
        if self.wanted:
            self.want()
        self.home.ended(self)

    # --- the shield ---

    def want(self) -> None:
        """The candidate failed, or takes long: answer with what the incumbent says, as soon as it does."""
        if self.answered:
            return
        self.wanted = True
        if self.theirs is PENDING and self.copy is not None and self.copy.running:
            self.home.guard(self, self.request.deadline_s)  # its end will be heard, perhaps too late
        elif self.rescue_over:
            self._give_up()
        elif not self.asked:
            self.asked = True
            self.home.rescue(self)

    def too_late(self) -> None:
        """The client's time is over, and what was to answer it still runs."""
        if not self.answered:
            self.rescue_over = True
            self._give_up()
            self.home.ended(self)

    def rescued(self, response: Response) -> None:
        self.rescue_over = True
        self.rescue = None
        if not self.answered:
            self._shield(response)

    def unrescued(self) -> None:
        self.rescue_over = True
        self.rescue = None
        self.want()

    def _shield(self, response: Response) -> None:
        home = self.home
        self.answered = True
        # Outputs of its own: what codecs keep of a batch is for the version that ran it.
        request_id = self.request_id or home.next_id(self.request)
        answer = Response(request_id, response.model, response.version, Outputs(response.outputs))
        home.was_unsent = False
        home.answering(copies=True)
        self.sink.done(answer)
        home.answering(copies=False)
        home.pairs.cells[UNSHIELDED if home.was_unsent else SHIELDED] += 1
        home.ended(self)

    def _give_up(self) -> None:
        if self.error is None:
            return  # the candidate may still make it
        self.answered = True
        if not isinstance(self.error, InvalidRequest):
            self.home.pairs.cells[UNSHIELDED] += 1
        self.sink.fail(self.error, self.request_id)

    # --- the client's ticket ---

    def cancel(self) -> None:
        """The client left. What the candidate has failed already stays a failure: then only the client's
        wish is over, and the copy runs on for the pair."""
        if self.answered:
            return
        self.answered = True
        tickets = [self.rescue]
        if self.mine is PENDING:
            self.mine = VOID
            tickets.append(self.ticket)
            self.theirs = VOID
        for ticket in tickets:
            if ticket is not None:
                ticket.cancel()
        self.home.ended(self)

    def hold(self) -> None:
        if self.ticket is not None:
            self.ticket.hold()

    def resume(self) -> None:
        if self.ticket is not None:
            self.ticket.resume()


class CopySink:
    """Hears how the copy of a request went."""

    __slots__ = ("part", "done", "fail")

    def __init__(self, pair: Pair) -> None:
        self.part = pair.part
        self.done = pair.copy_done
        self.fail = pair.copy_failed


class RescueSink:
    """Hears how the incumbent's run for a client of the candidate went."""

    __slots__ = ("_pair", "done", "part")

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.part = pair.part
        self.done = pair.rescued

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        self._pair.unrescued()


def kind_of(error: InterlockError, request_id: bytes) -> int:
    """What an error makes of a run; one without an id was refused, and never ran."""
    if not request_id:
        return VOID
    return INVALID if isinstance(error, InvalidRequest) else FAULTY


def _is_busy(refusal: InterlockError) -> bool:
    """Whether a refusal is the version's, and not that of a request that nobody could answer."""
    return isinstance(refusal, Unavailable) and not isinstance(refusal, DeadlineExceeded)
