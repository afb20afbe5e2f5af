"""Lane: the async shell of one version's batcher in one worker; joins, runs, takes apart, answers in time.

The fast path has no coroutine and no timer. All methods are for the worker's event loop.

Past 400 lines because what waits, what runs and what is tried again are one state: whoever changes one of
them has to see the others.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from math import inf
from time import monotonic

import msgspec

from interlock.core.clock import in_words
from interlock.core.errors import (
    DeadlineExceeded,
    Draining,
    InterlockError,
    InvalidRequest,
    ModelCrashed,
    Quarantined,
    RequestTooLarge,
    Unavailable,
)
from interlock.core.expected import Expected
from interlock.core.model import DATATYPES, Inputs, ModelSettings, Tensors, Version
from interlock.core.request import PRIORITY_NORMAL, Outputs, Request, Response, Sink, Tally, Ticket
from interlock.serving.admission import QueueView, decide
from interlock.serving.batch import join, shapes_of
from interlock.serving.batcher import Batch, Batcher
from interlock.serving.call import Call, Part, split
from interlock.serving.delivery import Delivery
from interlock.serving.latency import LatencyModel
from interlock.serving.placement import Place, StreamPlace, stream_place
from interlock.serving.suspects import hung_at, one_by_one

Item = Call | Part

REJOIN_PAUSE_S = 0.02


class Lane:
    """Runs the requests of one version on its place. Fulfils `graph.Step`.

    `outstanding` counts requests that wait, or run while the loop goes on: the version may be unloaded at 0.
    `crumb`, if given, is called with the number of requests before and with 0 after each batch that runs in
    this process, so that a crash can be laid to the version.
    """

    def __init__(
        self,
        version: Version,
        settings: ModelSettings,
        place: Place,
        crumb: Callable[[str, int], None] | None = None,
    ) -> None:
        self.version = version
        self.settings = settings
        self.place = place
        self.outstanding = 0
        self.draining = False
        self.broken: Quarantined | None = None
        self._crumb = crumb
        self._loop = asyncio.get_running_loop()
        signature, capabilities = version.signature, version.capabilities
        self._streams = stream_place(version, place)
        if self._streams is not None:
            signature = msgspec.structs.replace(signature, batch_axis=None)  # a part has any number of rows
        joinable = capabilities.batchable and signature.batch_axis == 0
        limit = capabilities.max_batch_rows
        if settings.max_batch_rows is not None:
            limit = min(limit, settings.max_batch_rows)
        self._latency = LatencyModel(version.profile.batch_s)
        self._batcher: Batcher[Item] = Batcher(max(1, limit), self._latency, joinable, settings.max_wait_s)
        self._joinable = joinable
        self._retry = capabilities.side_effect_free
        # When only the batch axis varies, all requests for all outputs may be joined, and need no key.
        self._one_shape = all(all(size >= 0 for size in spec.shape[1:]) for spec in signature.inputs)
        self._expected = Expected(signature)
        self._dtypes = {spec.name: DATATYPES[spec.datatype] for spec in signature.inputs}
        self._has_rows = signature.batch_axis == 0
        self._running: dict[Batch[Item], None] = {}
        self._awake = False
        self._instant = place.instant and joinable and self._one_shape and not settings.max_wait_s
        self._rejoining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf

    def view(self, now: float, priority: int = PRIORITY_NORMAL) -> QueueView:
        """The lane as admission sees it for a request of this priority."""
        batcher, busy_s = self._batcher, 0.0
        for batch in self._running:
            left_s = batch.started_s + self._latency.predict(max(batch.rows, 1)) - now
            busy_s = max(busy_s, left_s, 1e-6)
        asked_rows, ahead_rows = batcher.asked_rows, batcher.rows_ahead(priority)
        return QueueView(
            asked_rows,
            self.settings.queue_rows,
            batcher.max_rows,
            self._latency.predict(min(batcher.max_rows, max(1, ahead_rows + 1))),
            busy_s,
            self.place.slots,
            ahead_rows,
        )

    @property
    def congested(self) -> bool:
        """Whether a request would not be in the next batch. While it would, admission has nothing to weigh:
        its prediction costs 0.9 us a request, and whoever finds a free place is tried anyway."""
        return bool(self._running) or self._batcher.waiting_rows >= self._batcher.max_rows

    @property
    def spare_rows(self) -> int:
        """How many rows of copies may wait here: with all that waits already, one largest batch."""
        shut = self.draining or self.broken is not None or not self.place.connected
        return 0 if shut else self._batcher.max_rows - self._batcher.waiting_rows

    def start(
        self, jobs: Sequence[tuple[Request, Sink]], ids: Iterator[bytes], tally: Tally
    ) -> Sequence[Ticket | None]:
        """Take requests in; `step` then runs them. `ids` has an id for each of them.

        Who is refused (Overloaded, Draining, Quarantined, DeadlineExceeded, RequestTooLarge) hears so before
        this returns, without an id, and has None for a ticket.
        """
        batcher = self._batcher
        most_rows = batcher.max_rows
        shut = self.draining or self.broken is not None or bool(self._running)
        one_shape = self._one_shape
        tickets: list[Ticket | None] = []
        begun = 0
        for request, sink in jobs:
            deadline_s, rows, outputs = request.deadline_s, request.rows, request.outputs
            if (
                shut
                or rows > most_rows
                or batcher.waiting_rows >= most_rows
                or deadline_s <= request.received_s
            ):
                refusal = self._refusal(request)
                if refusal is not None:
                    tally.refused()
                    next(ids)
                    sink.fail(refusal, b"")
                    tickets.append(None)
                    continue
            key: Hashable = None
            if not one_shape or outputs is not None:
                key = None if one_shape else shapes_of(request.inputs), outputs
            call = self._call(request, sink, next(ids), tally, key)
            if rows <= most_rows:
                batcher.offer(call)
            else:
                for part in split(call, most_rows):
                    batcher.offer(part)
            begun += 1
            tickets.append(call)
        tally.dispatched(begun)
        self.outstanding += begun
        return tickets

    def at_once(
        self, jobs: Sequence[tuple[Request, Sink]], ids: Iterator[bytes], tally: Tally
    ) -> Sequence[Ticket | None] | None:
        """`start` and `step` in one, where nothing waits or runs, the place answers before it returns and all
        of `jobs` (one at least) make one batch, of one priority; None, and nothing has happened, where not.

        Nobody can leave and no time-out can strike meanwhile, so that no request needs a place in a queue, a
        ticket or a timer (docs/decisions/0014). Returns no tickets where all are answered; those of a batch
        that failed, some of which may still be tried.
        """
        batcher = self._batcher
        if not self._instant or self._awake or self._running or batcher.waiting_items or batcher.retrying:
            return None
        if self.draining or self.broken is not None:
            return None
        now = monotonic()
        rows, soonest_s = 0, inf
        priority = jobs[0][0].priority
        for request, _ in jobs:
            if request.outputs is not None or request.priority != priority:
                return None
            rows += request.rows
            if request.deadline_s < soonest_s:
                soonest_s = request.deadline_s
        if rows > batcher.max_rows or now + self._latency.predict(rows) > soonest_s:
            return None
        self._awake = True  # whoever hears of an answer may ask for more: that waits for its turn
        try:
            tally.dispatched(len(jobs))
            result = self._run_now([request.inputs for request, _ in jobs], rows, tally)
            ended_s = monotonic()
            if isinstance(result, InterlockError):
                calls = [self._call(request, sink, next(ids), tally, None) for request, sink in jobs]
                return self._go_on(calls, rows, result, now)
            tally.all_ok([request.received_s for request, _ in jobs], now, ended_s)
            outputs = Outputs(result, each_one_row=rows == len(jobs))
            model, number, start = self.version.model, self.version.number, 0
            for request, sink in jobs:
                stop = start + request.rows
                sink.done(Response(next(ids), model, number, outputs, start, stop))
                start = stop
            return []
        finally:
            self._awake = False
            if batcher.waiting_items or batcher.retrying:
                self._step()

    def _run_now(self, inputs: list[Inputs], rows: int, tally: Tally) -> Tensors | InterlockError:
        """The outputs of requests as one batch, held to the signature, or why there are none."""
        joined = self._joined(inputs)
        if isinstance(joined, InterlockError):
            return joined
        ended: list[tuple[Tensors | InterlockError, float]] = []
        if self._crumb is not None:
            self._crumb(self.version.key, len(inputs))
        self.place.run(joined, None, len(inputs), inf, lambda *outcome: ended.append(outcome))
        if self._crumb is not None:
            self._crumb("", 0)
        return self._judged(*ended[0], rows, None, tally)

    def _go_on(self, calls: list[Call], rows: int, error: InterlockError, began_s: float) -> list[Call]:
        """Go on with a batch that failed at once as if it had been taken from the queue."""
        for call in calls:
            call.running = True
        self.outstanding += len(calls)
        batch: Batch[Item] = Batch([*calls], rows)
        batch.started_s = began_s
        self._settle_failed(batch, error, monotonic())
        return calls

    def _joined(self, inputs: list[Inputs]) -> Tensors | InvalidRequest:
        try:
            return join(inputs, self._dtypes)
        except Exception as error:  # no input that the wire let through may end the step
            return InvalidRequest(f"the inputs cannot be joined: {error}")

    def _judged(
        self,
        result: Tensors | InterlockError,
        compute_s: float,
        rows: int,
        wanted: tuple[str, ...] | None,
        tally: Tally,
    ) -> Tensors | InterlockError:
        """What a batch gave, counted, learned from, and held to the signature."""
        if isinstance(result, InterlockError):
            return result
        self._latency.learn(max(1, rows), compute_s)
        tally.batch(rows, compute_s)
        return self._expected.wrong(result, wanted, rows) or result

    def step(self) -> None:
        """Run what can run now; for whoever called `start`, when it has no more to bring."""
        if not self._awake:
            self._step()

    def _call(self, request: Request, sink: Sink, request_id: bytes, tally: Tally, key: Hashable) -> Call:
        return Call(
            request,
            sink,
            request_id,
            tally,
            key,
            self,
            request.inputs,
            request.rows,
            request.deadline_s,
            request.priority,
            request.received_s,
        )

    def _refusal(self, request: Request) -> InterlockError | None:
        if self.broken is not None:
            return self.broken
        if self.draining:
            return Draining(f"{self.version.key} is being unloaded; try again")
        now = monotonic()
        refusal = decide(
            self.view(now, request.priority), request.rows, request.deadline_s, request.priority, now
        )
        if refusal is not None or request.rows <= self._batcher.max_rows:
            return refusal
        if self._joinable:
            return None
        return RequestTooLarge(
            f"{request.rows} rows: version {self.version.number} of '{self.version.model}' takes at most"
            f" {self._batcher.max_rows} at once and its rows cannot be split; send fewer"
        )

    def _step(self) -> None:
        batcher = self._batcher
        slots = self.place.slots
        self._awake = True  # inline batches end in here; they need not wake us again
        try:
            while len(self._running) < slots and not self._rejoining:
                now = monotonic()
                batch = batcher.take(now)
                if batch is None:
                    break
                self._run(batch, now)
        finally:
            self._awake = False
            self._watch()

    def _run(self, batch: Batch[Item], now: float) -> None:
        items = batch.items
        batch.started_s = now
        first = items[0]
        inputs = self._joined([item.inputs for item in items])
        if isinstance(inputs, InterlockError):
            self._settle_failed(batch, inputs, now)
            return
        request = first.request if isinstance(first, Call) else first.call.request
        # One that is alone because its batch failed is a suspect: its neighbours wait behind it.
        has_neighbours = len(items) > 1 or batch.depth > 0
        soonest_s = min([item.deadline_s for item in items]) if has_neighbours else first.deadline_s
        predicted_s = self._latency.predict(max(1, batch.rows))
        kill_at_s = hung_at(now, soonest_s, predicted_s, has_neighbours)
        self._running[batch] = None
        if self._crumb is not None:
            self._crumb(self.version.key, len(items))
        if self._streams is not None:
            self._stream(self._streams, batch, inputs, kill_at_s)
            return

        def done(result: Tensors | InterlockError, compute_s: float) -> None:
            self._finished(batch, result, compute_s)

        self.place.run(inputs, request.outputs, len(items), kill_at_s, done)

    def _finished(self, batch: Batch[Item], result: Tensors | InterlockError, compute_s: float) -> None:
        if self._crumb is not None:
            self._crumb("", 0)
        del self._running[batch]
        now = monotonic()
        first = batch.items[0]
        call = first if isinstance(first, Call) else first.call
        result = self._judged(result, compute_s, batch.rows, call.request.outputs, call.tally)
        if isinstance(result, InterlockError):
            self._settle_failed(batch, result, now)
        else:
            self._settle(batch, result, now)
        if not self._awake and (self._batcher.waiting_items or self._batcher.retrying):
            self._awake = True
            self._loop.call_soon(self._step)

    def _stream(self, place: StreamPlace, batch: Batch[Item], inputs: Tensors, kill_at_s: float) -> None:
        call = batch.items[0]
        assert isinstance(call, Call)  # only what may be joined is cut into parts

        def ended(result: Tensors | InterlockError, compute_s: float, first_s: float) -> None:
            if isinstance(result, InterlockError):
                self._finished(batch, result, compute_s)
                return
            if self._crumb is not None:
                self._crumb("", 0)
            del self._running[batch]
            self._latency.learn(max(1, batch.rows), compute_s)
            call.tally.batch(batch.rows, first_s)
            if not self._awake:
                self._awake = True
                self._loop.call_soon(self._step)

        Delivery(call, batch.started_s, self._expected, self._settled, ended).start(place, inputs, kill_at_s)

    def _settle(self, batch: Batch[Item], tensors: Tensors, now: float) -> None:
        items = batch.items
        started_s = batch.started_s
        has_rows = self._has_rows
        outputs = Outputs(tensors, each_one_row=has_rows and batch.rows == len(items))
        # Counted before anybody is answered: who asks for the counts next sees its own request in them.
        arrived_s: list[float] = []
        tally: Tally | None = None
        answered: list[tuple[Call, int]] = []
        end = 0
        for item in items:
            start = end
            end += item.rows
            if item.gone:
                continue
            item.gone = True
            if isinstance(item, Part):
                part = {name: array[start:end] for name, array in tensors.items()}
                item.done(part, now, started_s)
                self._settled(item)
                continue
            if item.tally is not tally:
                if tally is not None:
                    tally.all_ok(arrived_s, started_s, now)
                    arrived_s = []
                tally = item.tally
            arrived_s.append(item.arrived_s)
            item.settled = True
            answered.append((item, start))
        if tally is not None:
            tally.all_ok(arrived_s, started_s, now)
        self.outstanding -= len(answered)
        model, number = self.version.model, self.version.number
        for call, start in answered:
            stop = start + call.rows if has_rows else None
            call.sink.done(Response(call.request_id, model, number, outputs, start, stop))

    def _settle_failed(self, batch: Batch[Item], error: InterlockError, now: float) -> None:
        if isinstance(error, Unavailable):
            # The place went away before it began. Each try ends in an answer by the deadline at the latest.
            # The pause also ends the running step: a place that refuses at once would hold the loop for ever.
            self._batcher.again(batch)
            if not self._rejoining:
                self._rejoining = True
                self._loop.call_later(REJOIN_PAUSE_S, self._rejoin)
            return
        if self._retry and self._separate(batch, error):
            return
        for item in batch.items:
            if not item.gone:
                item.gone = True
                item.fail(error, now)
                self._settled(item)

    def _separate(self, batch: Batch[Item], error: InterlockError) -> bool:
        """Try a failed batch in smaller ones, in the way that is cheaper for what the failure cost."""
        if isinstance(error, ModelCrashed):
            items = sum(not item.gone for item in batch.items)
            if one_by_one(items, self._latency.predict(1)):
                return self._batcher.isolate(batch)
        return self._batcher.halve(batch)

    def _rejoin(self) -> None:
        self._rejoining = False
        if not self._awake:
            self._step()

    def _settled(self, item: Item) -> None:
        # A call in parts stops being outstanding once, when all of it is answered or dropped.
        if isinstance(item, Call):
            self.outstanding -= 1
        elif item.call.settled and not item.call.gone:
            item.call.gone = True
            self.outstanding -= 1

    def give_up(self, error: Quarantined) -> None:
        """The version will not run again: answer all that waits or runs, and all that comes, with `error`."""
        self.broken = error
        now = monotonic()
        late: list[Item] = self._batcher.expire(inf)
        for batch in (*self._running, *self._batcher.retrying):
            late += [item for item in batch.items if not item.gone]
        for item in late:
            item.gone = True
            item.fail(error, now)
            self._settled(item)

    def leave(self, call: Call) -> None:
        """A call was cancelled, or failed in one of its parts: drop what is left of it."""
        batcher = self._batcher
        if call.parts is None:
            batcher.cancel(call)
            self.outstanding -= 1
            return
        for part in call.parts:
            batcher.cancel(part)
        if not call.gone:
            call.gone = True
            self.outstanding -= 1

    def _watch(self) -> None:
        """Keep one timer: at the earliest deadline, or when a batch has waited long enough for company."""
        earliest_s = self._batcher.earliest_deadline_s
        if len(self._running) < self.place.slots:
            earliest_s = min(earliest_s, self._batcher.ready_s)
        for batch in (*self._running, *self._batcher.retrying):
            for item in batch.items:
                if not item.gone and item.deadline_s < earliest_s:
                    earliest_s = item.deadline_s
        if earliest_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = earliest_s
            self._timer = self._loop.call_later(max(0.0, earliest_s - monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_s = None, inf
        now = monotonic()
        late: list[Item] = self._batcher.expire(now)
        for batch in (*self._running, *self._batcher.retrying):
            for item in batch.items:
                if not item.gone and item.deadline_s <= now:
                    item.gone = True
                    late.append(item)
        for item in late:
            limit, state = item.deadline_s - item.arrived_s, "running" if item.running else "waiting"
            item.fail(DeadlineExceeded(f"no answer within {in_words(limit)} (the request was {state})"), now)
            self._settled(item)
        if self._awake or not (self._batcher.waiting_items or self._batcher.retrying):
            self._watch()
        else:
            self._step()  # what has waited long enough for company, or waited behind what expired
