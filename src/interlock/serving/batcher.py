"""Batcher: which requests run together, and when; pure, so that time, cancellation and failure are arguments.

Work-conserving: `take` gives a batch whenever something waits; while one computes, the next forms by itself.
It owns the queue, the order, the size and the splitting of a batch that failed; it never runs anything.
"""

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Generic, Protocol, TypeVar

from interlock.core.errors import ConfigError
from interlock.core.request import PRIORITIES, PRIORITY_COPY
from interlock.serving.latency import LatencyModel


class Item(Protocol):
    """What waits. `key`: only items with equal keys may be joined; None is the common case. `gone`:
    nobody waits for it any more; `running`: a batch has taken it."""

    rows: int
    deadline_s: float
    priority: int
    key: Hashable
    arrived_s: float
    gone: bool
    running: bool


ItemT = TypeVar("ItemT", bound=Item)


class Batch(Generic[ItemT]):
    """Items that run in one call. `depth` counts the halvings behind it; `tries` the whole repetitions."""

    __slots__ = ("depth", "items", "rows", "started_s", "tries")

    def __init__(self, items: list[ItemT], rows: int, depth: int = 0) -> None:
        self.items = items
        self.rows = rows
        self.depth = depth
        self.tries = 0
        self.started_s = 0.0


class Batcher(Generic[ItemT]):
    """The queue of one version in one worker.

    `max_rows` bounds a batch, unless a single item is larger; `joinable` is False when items must run alone;
    `max_wait_s` lets a batch wait for company (0: never). High priority goes first, always; within a
    priority, groups of equal key take turns, and within a group first come, first served.
    """

    def __init__(
        self, max_rows: int, latency: LatencyModel, joinable: bool = True, max_wait_s: float = 0.0
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"largest batch of {max_rows} rows: want at least 1")
        self.max_rows = max_rows
        self.latency = latency
        self.waiting_rows = 0
        self.waiting_items = 0
        self._rows = [0] * PRIORITIES
        self._joinable = joinable
        self._max_wait_s = max_wait_s
        # Key to items, for each priority. A dict keeps insertion order, so its first key is next in turn.
        self._groups: list[dict[Hashable, deque[ItemT]]] = [{} for _ in range(PRIORITIES)]
        self._retries: deque[Batch[ItemT]] = deque()
        self._gone = 0
        # No waiting item has an earlier deadline. It may lag behind (be too early), never ahead.
        self._earliest_s = inf
        self._ready_s = inf

    def offer(self, item: ItemT) -> None:
        """Let an item wait. Whether it may is admission's decision, taken before."""
        key = item.key
        groups = self._groups[item.priority]
        if key in groups:
            groups[key].append(item)
        else:
            groups[key] = deque((item,))
        self.waiting_rows += item.rows
        self._rows[item.priority] += item.rows
        self.waiting_items += 1
        if item.deadline_s < self._earliest_s:
            self._earliest_s = item.deadline_s

    def take(self, now: float) -> Batch[ItemT] | None:
        """The next batch, or None when nothing waits (or all that waits may still wait for company).

        The largest prefix of the group in turn that fits `max_rows` and whose predicted latency meets the
        earliest deadline in it; at least one item, for whoever is admitted is tried. Items already past
        their deadline are not taken: `expire` hands them out.
        """
        while self._retries:
            batch = self._retries.popleft()
            alive = [item for item in batch.items if not item.gone]
            if alive:
                batch.items = alive
                batch.rows = sum(item.rows for item in alive)
                return batch
        if not self.waiting_items:
            return None
        self._ready_s = inf
        for groups in self._groups:
            passed = 0
            while len(groups) > passed:
                key = next(iter(groups))
                group = groups[key]
                items, rows = self._collect(group, now)
                if items:
                    if not group:
                        del groups[key]
                    elif len(groups) > 1:
                        groups[key] = groups.pop(key)
                    self._left(items, rows)
                    return Batch(items, rows)
                if group:
                    # What is left of it has expired or waits for company: that holds up no other group.
                    groups[key] = groups.pop(key)
                    passed += 1
                else:
                    del groups[key]
        return None

    def _collect(self, group: deque[ItemT], now: float) -> tuple[list[ItemT], int]:
        items: list[ItemT] = []
        rows = 0
        limit = self.max_rows
        check = now + self.latency.predict(min(limit, max(1, self.waiting_rows))) > self._earliest_s
        if not (check or self._gone or self._max_wait_s) and self._joinable and self.waiting_rows <= limit:
            # The usual case: all of the group, with nothing to weigh.
            items.extend(group)
            group.clear()
            for item in items:
                item.running = True
                rows += item.rows
            return items, rows
        soonest = inf
        skipped: list[ItemT] = []
        while group:
            item = group[0]
            if item.gone:
                group.popleft()
                self._gone -= 1
                continue
            if check:
                if item.deadline_s <= now:
                    skipped.append(group.popleft())
                    continue
                sooner = item.deadline_s if item.deadline_s < soonest else soonest
                if items and now + self.latency.predict(rows + item.rows) > sooner:
                    break
                soonest = sooner
            if items and (rows + item.rows > limit or not self._joinable):
                break
            items.append(group.popleft())
            rows += item.rows
            item.running = True
        group.extendleft(reversed(skipped))
        if self._max_wait_s and items and rows < limit and not group and self._joinable:
            soonest = min(item.deadline_s for item in items)
            ready_s = min(items[0].arrived_s + self._max_wait_s, soonest - self.latency.predict(max(1, rows)))
            if ready_s > now:
                self._ready_s = min(self._ready_s, ready_s)
                for item in items:
                    item.running = False
                group.extendleft(reversed(items))
                return [], 0
        return items, rows

    def _left(self, items: list[ItemT], rows: int) -> None:
        self.waiting_rows -= rows
        self._rows[items[0].priority] -= rows
        self.waiting_items -= len(items)
        if not self.waiting_items:
            self._earliest_s = inf

    @property
    def ready_s(self) -> float:
        """When what the last `take` left to wait for company is to run all the same; infinite if nothing."""
        return self._ready_s if self.waiting_items else inf

    @property
    def asked_rows(self) -> int:
        """Waiting rows that are no copies: what a client's request waits behind."""
        return self.rows_ahead(PRIORITY_COPY - 1)

    def rows_ahead(self, priority: int) -> int:
        """Waiting rows that go before a request of this priority that comes last."""
        return sum(self._rows[: priority + 1])

    def cancel(self, item: ItemT) -> None:
        """Drop an item, waiting or running. Its neighbours notice nothing."""
        if item.gone:
            return
        item.gone = True
        if item.running:
            return
        self.waiting_rows -= item.rows
        self._rows[item.priority] -= item.rows
        self.waiting_items -= 1
        self._gone += 1
        # Whoever left still takes memory here. Without this, callers that come and go while the model
        # hangs would grow the queue past its bound.
        if self._gone > 64 and self._gone > self.waiting_items:
            self._compact()

    def _compact(self) -> None:
        for priority, groups in enumerate(self._groups):
            alive = {key: deque(i for i in group if not i.gone) for key, group in groups.items()}
            self._groups[priority] = {key: group for key, group in alive.items() if group}
        self._gone = 0

    def expire(self, now: float) -> list[ItemT]:
        """Waiting items whose deadline has passed; they are gone afterwards, and the caller settles them."""
        if now < self._earliest_s:
            return []
        late: list[ItemT] = []
        self._earliest_s = inf
        for groups in self._groups:
            for group in groups.values():
                for item in group:
                    if item.gone:
                        continue
                    if item.deadline_s <= now:  # all of them at infinity
                        late.append(item)
                    elif item.deadline_s < self._earliest_s:
                        self._earliest_s = item.deadline_s
        for item in late:
            self.cancel(item)
        return late

    @property
    def earliest_deadline_s(self) -> float:
        """No waiting item's deadline is before this; infinite when nothing waits."""
        return self._earliest_s

    @property
    def retrying(self) -> tuple[Batch[ItemT], ...]:
        """Batches that wait to be tried again; they go first. Their deadlines are the caller's to watch."""
        return tuple(self._retries)

    def halve(self, batch: Batch[ItemT]) -> bool:
        """A batch of several failed: try its halves, so that one poisoned item ends up alone. False if
        the batch had one item, or none is left. One that is left of several is tried alone: the culprit may
        be among those that have gone since.

        After what waits to be tried already: of two halves, the innocent one is not to wait until the culprit
        is found in the other, each try of which may last until it counts as hung.
        """
        alive = [item for item in batch.items if not item.gone]
        if len(batch.items) < 2 or not alive:
            return False
        middle = len(alive) // 2
        for part in filter(None, (alive[:middle], alive[middle:])):
            self._retries.append(Batch(part, sum(item.rows for item in part), batch.depth + 1))
        return True

    def isolate(self, batch: Batch[ItemT]) -> bool:
        """A batch of several failed, at a price that halving would pay again at each level: try each item
        alone, after what waits to be tried already. False as in `halve`."""
        alive = [item for item in batch.items if not item.gone]
        if len(batch.items) < 2 or not alive:
            return False
        for item in alive:
            self._retries.append(Batch([item], item.rows, batch.depth + 1))
        return True

    def again(self, batch: Batch[ItemT]) -> None:
        """A batch never started (its place went away): try it whole."""
        batch.tries += 1
        self._retries.appendleft(batch)
