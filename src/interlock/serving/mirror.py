"""Decides when the requests of one arm run on a second lane too, and counts what comes of it.

A copy never has a client wait: it begins when the client's own run is over, waits behind all that clients
wait for, and is dropped where more than one largest batch would wait. Beside the client's run it would take
half of a core from it, and all that the candidate answers would look slow. So copies hold no more memory than
two batches and their answers. Those whose clients' runs ended in one turn of the loop go to their lane
together, to be one batch there as well: then the two batches hold the same rows, and the times that they take
can be compared.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from math import inf
from time import monotonic
from typing import Any, Protocol

from interlock.core.model import ModelSettings, Version
from interlock.core.request import PRIORITY_COPY, Request, Response, Sink, Ticket
from interlock.core.route import Arm, Mirror, unit_position
from interlock.serving.agreement import Agreement, Answers
from interlock.serving.block import BAD, BETTER, DROPPED, FASTER, GOOD, SLOWER, WORSE, Slot
from interlock.serving.call import Call
from interlock.serving.lane import Lane
from interlock.serving.pair import INVALID, PENDING, VOID, WELL, CopySink, Pair, RescueSink, Run

LEAST_LONGER_S = 1e-4
"""What a candidate may take longer in any case: a batch of microseconds varies by more than its ratio."""
SHIELD_AFTER = 0.5
"""The share of a client's time after which the incumbent begins to answer for a candidate that has not."""


class Client(Protocol):
    """The target whose requests are mirrored (`infer.Target`)."""

    arm: Arm
    fixed: bool
    lane: Lane
    model: str
    settings: ModelSettings
    slot: Slot
    unit_field: str | None
    version: Version

    def ids(self, jobs: Sequence[tuple[Request, object]]) -> Iterator[bytes]: ...
    def invalid(self, received_s: float) -> None: ...
    def is_first_unsent(self, version_key: str) -> bool: ...


class Timed:
    """A Tally that also remembers how long the batch ran that was counted last, and which one it was."""

    __slots__ = ("_rows", "_compute_s", "_slot", "compute_s", "dispatched", "refused", "rows", "serial")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._rows = 0
        self._compute_s = 0.0
        self.serial = 0
        self.rows = 0
        self.compute_s = 0.0
        self.dispatched = slot.dispatched
        self.refused = slot.refused

    def batch(self, rows: int, compute_s: float) -> None:
        self._rows, self._compute_s = rows, compute_s
        self._slot.batch(rows, compute_s)

    def all_ok(self, arrived_s: list[float], started_s: float, now: float) -> None:
        # `batch` told the first request's tally alone: where that was another one, the rows are not known.
        self.serial += 1
        self.rows, self.compute_s, self._rows = self._rows, self._compute_s, 0
        self._slot.all_ok(arrived_s, started_s, now)

    def settled_ok(self, total_s: float, queue_s: float) -> None:
        self.serial += 1
        self.rows = self._rows = 0  # a request in parts, of several batches
        self._slot.settled_ok(total_s, queue_s)

    def settled(self, kind: int, total_s: float) -> None:
        self._rows = 0
        self._slot.settled(kind, total_s)


class Mirrored:
    """Stands in for the target of one arm. `other` is the lane that runs the copies; `copies` their counts,
    `pairs` the row of the candidate. `share` of the requests are drawn, by unit where there is one."""

    def __init__(
        self,
        client: Client,
        other: Lane,
        mirror: Mirror,
        share: float,
        salt: str,
        copies: Slot,
        pairs: Slot,
        copy_id: bytes,
        draw: Callable[[], float],
    ) -> None:
        self.model = client.model
        self.lane = client.lane
        self.version = client.version
        self.settings = client.settings
        self.arm = client.arm
        self.slot = client.slot
        self.fixed = client.fixed
        self.unit_field = client.unit_field
        self.codec: Any = None
        self.pairs = pairs
        self.was_unsent = False
        self.is_candidate = client.arm.index == mirror.candidate
        self.shielded = mirror.shielded and self.is_candidate
        self.invalid = client.invalid
        self._client = client
        self._other = other
        self._share = share
        self._salt = f"{salt}:mirror"
        self._draw = draw
        self._ratio = mirror.latency_ratio
        self._copy_id = copy_id
        self._copies = copies
        self._answering = client.slot
        self._timed = Timed(client.slot)
        self._timed_copies = Timed(copies)
        self._last = (0, 0)
        self._agreement = Agreement(mirror, client.version.signature, other.version.signature)
        names = {spec.name for spec in other.version.signature.outputs}
        self._same_outputs = names == {spec.name for spec in client.version.signature.outputs}
        self._to_copy: list[Pair] = []
        self._to_rescue: list[Pair] = []
        self._to_compare: list[tuple[Answers, Answers]] = []
        self._is_awake = False
        self._guarded: dict[Pair, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        self._loop = asyncio.get_running_loop()

    # --- what the wire calls ---

    def submit(self, jobs: Sequence[tuple[Request, Sink]]) -> Sequence[Ticket | None]:
        """Begin what one turn of the loop brought, as `Target.submit` does."""
        share, shielded = self._share, self.shielded
        pairs: list[tuple[int, Pair]] = []
        own: list[tuple[Request, Sink]] = []
        for index, job in enumerate(jobs):
            request = job[0]
            is_drawn = share >= 1.0 or (share > 0.0 and self._position(request.unit) < share)
            if is_drawn or shielded:
                pair = Pair(self, request, job[1], is_drawn)
                pairs.append((index, pair))
                own.append((request, pair))
            else:
                own.append(job)
        begun = list(self.lane.start(own, self._client.ids(own), self._timed))
        for index, pair in pairs:
            pair.ticket = begun[index]
            if pair.ticket is not None or shielded:
                begun[index] = pair
        self.lane.step()
        for _, pair in pairs:
            if shielded and pair.mine == PENDING:
                request = pair.request
                self._guarded[pair] = request.received_s + SHIELD_AFTER * (
                    request.deadline_s - request.received_s
                )
        if self._guarded:
            self._watch()
        return begun

    def unsent(self, received_s: float) -> bool:
        """See `Target.unsent`; where the outputs are a copy's, that failed."""
        self.was_unsent = True
        self._answering.unsent(monotonic() - received_s)
        version = self.version if self._answering is self.slot else self._other.version
        return self._client.is_first_unsent(version.key)

    # --- what pairs call ---

    def ran(self, response: Response, of_copy: bool) -> Run:
        timed = self._timed_copies if of_copy else self._timed
        return Run(response, timed.serial, timed.rows, timed.compute_s)

    def answering(self, copies: bool) -> None:
        self._answering = self._copies if copies else self.slot

    def next_id(self, request: Request) -> bytes:
        return next(self._client.ids(((request, None),)))

    def rescue(self, pair: Pair) -> None:
        self._to_rescue.append(pair)
        self._wake()

    def guard(self, pair: Pair, until_s: float) -> None:
        self._guarded[pair] = until_s
        self._watch()

    def dropped(self, pair: Pair) -> None:
        pair.theirs = VOID
        self.pairs.cells[DROPPED] += 1

    def ended(self, pair: Pair) -> None:
        """One of the two runs is over, or the client is: count the pair when both runs are."""
        if pair.mine == PENDING:
            return
        if self._guarded and pair.answered:
            self._guarded.pop(pair, None)
        if pair.theirs == PENDING:
            if pair.mine == VOID:
                pair.theirs = VOID
            elif not pair.copied:
                pair.copied = True
                self._to_copy.append(pair)
                self._wake()
            return
        mine, theirs = (pair.mine, pair.theirs) if self.is_candidate else (pair.theirs, pair.mine)
        run, copy_run = pair.run, pair.copy_run
        pair.theirs = VOID
        # Tickets refer to their sinks, and these to the pair: in circles, and with all the tensors.
        pair.run = pair.copy_run = pair.ticket = pair.copy = None
        if VOID in (mine, theirs) or (mine == INVALID and theirs == INVALID):
            return
        cells = self.pairs.cells
        if mine == WELL:
            cells[GOOD if theirs == WELL else BETTER] += 1
        else:
            cells[WORSE if theirs == WELL else BAD] += 1
        if run is not None and copy_run is not None and mine == theirs == WELL:
            self._compare_times(run, copy_run)
            ours, others = _answers(run.response), _answers(copy_run.response)
            self._to_compare.append((ours, others) if self.is_candidate else (others, ours))
            self._wake()

    def _compare_times(self, run: Run, copy_run: Run) -> None:
        # Requests of one batch took the same time: that is one observation. Batches of other sizes are none.
        if not run.rows or run.rows != copy_run.rows:
            return
        if run.serial == self._last[0] or copy_run.serial == self._last[1]:
            return
        self._last = run.serial, copy_run.serial
        candidate_s, incumbent_s = run.compute_s, copy_run.compute_s
        if not self.is_candidate:
            candidate_s, incumbent_s = incumbent_s, candidate_s
        allowed_s = incumbent_s * self._ratio + LEAST_LONGER_S
        if candidate_s != allowed_s:
            self.pairs.cells[SLOWER if candidate_s > allowed_s else FASTER] += 1

    # --- a turn of the loop later ---

    def _position(self, unit: bytes | None) -> float:
        return self._draw() if unit is None else unit_position(unit, self._salt)

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_awake = False
        if self._to_copy:
            self._start_copies()
        if self._to_rescue:
            self._start_rescues()
        if self._to_compare:
            answers, self._to_compare = self._to_compare, []
            self._agreement.count(answers, self.pairs.cells)

    def _start_copies(self) -> None:
        drawn, self._to_copy = self._to_copy, []
        other, now = self._other, monotonic()
        spare_rows = other.spare_rows
        jobs: list[tuple[Request, Sink]] = []
        copied: list[Pair] = []
        for pair in drawn:
            if pair.request.rows > spare_rows:
                self.dropped(pair)
                self.ended(pair)
                continue
            spare_rows -= pair.request.rows
            jobs.append(
                (
                    self._again(pair.request, PRIORITY_COPY, now, self._until(pair.request, now)),
                    CopySink(pair),
                )
            )
            copied.append(pair)
        tickets = other.start(jobs, repeat(self._copy_id), self._timed_copies)
        for pair, ticket in zip(copied, tickets, strict=True):
            if isinstance(ticket, Call):
                pair.copy = ticket
        other.step()

    def _start_rescues(self) -> None:
        asked, self._to_rescue = self._to_rescue, []
        other, now = self._other, monotonic()
        jobs: list[tuple[Request, Sink]] = []
        rescued: list[Pair] = []
        for pair in asked:
            if pair.answered or pair.rescue_over:
                continue
            if pair.theirs == PENDING and pair.copy is not None and pair.copy.running:
                pair.asked = False  # the copy has begun and is as soon, if it does not take too long
                self.guard(pair, pair.request.deadline_s)
                continue
            request = pair.request
            jobs.append((self._again(request, request.priority, now, request.deadline_s), RescueSink(pair)))
            rescued.append(pair)
        tickets = other.start(jobs, repeat(self._copy_id), self._copies)
        for pair, ticket in zip(rescued, tickets, strict=True):
            if not pair.rescue_over:
                pair.rescue = ticket
        other.step()

    def _until(self, request: Request, now: float) -> float:
        """The deadline of a copy. It waits behind all that clients wait for, and that must not make it late:
        it has the client's time once for waiting, and once for running."""
        return now + 2.0 * (request.deadline_s - request.received_s)

    def _again(self, request: Request, priority: int, now: float, deadline_s: float) -> Request:
        return Request(
            request.model,
            request.inputs,
            request.rows,
            deadline_s,
            now,
            outputs=request.outputs if self._same_outputs else None,
            priority=priority,
        )

    def _watch(self) -> None:
        earliest_s = min(self._guarded.values())
        if earliest_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = earliest_s
            self._timer = self._loop.call_later(max(0.0, earliest_s - monotonic()), self._guard)

    def _guard(self) -> None:
        self._timer, self._timer_s = None, inf
        now = monotonic()
        for pair in [pair for pair, since_s in self._guarded.items() if since_s <= now]:
            del self._guarded[pair]
            if pair.wanted and pair.mine != PENDING:
                pair.too_late()
            else:
                pair.want()
        if self._guarded:
            self._watch()


def _answers(response: Response) -> Answers:
    return response.batch.tensors, response.start, response.stop
