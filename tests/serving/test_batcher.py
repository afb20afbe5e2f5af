"""The batcher against a model of it: whatever the order of events, each item leaves once, and by one door."""

from math import ceil, inf, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interlock.core.clock import FakeClock
from interlock.core.errors import ConfigError
from interlock.core.request import PRIORITIES
from interlock.serving.batcher import Batch, Batcher
from interlock.serving.latency import LatencyModel
from tests.serving.fakes import FakeItem
from tests.thorough import examples


def a_batcher(
    max_rows: int = 4,
    *,
    joinable: bool = True,
    max_wait_s: float = 0.0,
    batch_s: dict[int, float] | None = None,
) -> Batcher[FakeItem]:
    return Batcher(max_rows, LatencyModel(batch_s), joinable, max_wait_s)


def queued(batcher: Batcher[FakeItem]) -> int:
    """How many items the batcher's memory holds, dead ones too."""
    return sum(len(group) for groups in batcher._groups for group in groups.values())


def drained(batcher: Batcher[FakeItem], now: float = 0.0) -> list[list[FakeItem]]:
    taken = []
    while (batch := batcher.take(now)) is not None:
        taken.append(batch.items)
    return taken


class BatcherMachine(RuleBasedStateMachine):
    """Random offers, takes, cancels, expiries, failures and repetitions, against plain bookkeeping."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.latency = LatencyModel()
        self.batcher: Batcher[FakeItem] = a_batcher()
        self.max_rows, self.joinable, self.max_wait_s = 4, True, 0.0
        self.waiting: list[FakeItem] = []  # in order of arrival
        self.running: list[Batch[FakeItem]] = []
        self.retrying: list[FakeItem] = []
        self.left: dict[FakeItem, str] = {}
        self.most_gone = 0

    @initialize(
        max_rows=st.integers(1, 8),
        joinable=st.booleans(),
        max_wait_s=st.sampled_from([0.0, 0.0, 0.5]),
        learnt=st.sampled_from([0.0, 0.01, 0.3]),
    )
    def start(self, max_rows: int, joinable: bool, max_wait_s: float, learnt: float) -> None:
        self.max_rows, self.joinable, self.max_wait_s = max_rows, joinable, max_wait_s
        self.latency = LatencyModel({1: learnt})
        self.batcher = Batcher(max_rows, self.latency, joinable, max_wait_s)

    def leave(self, item: FakeItem, door: str) -> None:
        assert item not in self.left, f"{item} left by {self.left[item]} and by {door}"
        self.left[item] = door

    @rule(
        rows=st.integers(0, 10),
        key=st.sampled_from([None, "a", "b"]),
        priority=st.integers(0, 1),
        wait_s=st.sampled_from([0.0, 0.05, 0.4, 2.0, inf]),
    )
    def offer(self, rows: int, key: str | None, priority: int, wait_s: float) -> None:
        now = self.clock()
        item = FakeItem(rows, now + wait_s, priority, key, now)
        self.batcher.offer(item)
        self.waiting.append(item)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 3.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def take(self) -> None:
        now = self.clock()
        batch = self.batcher.take(now)
        if batch is None:
            assert not self.retrying
            self.check_nothing_to_take(now)
            return
        items = batch.items
        assert items and all(not item.gone and item.running for item in items)
        assert batch.rows == sum(item.rows for item in items)
        if batch.depth or batch.tries:
            assert all(item in self.retrying for item in items)
            self.retrying = [item for item in self.retrying if item not in items]
        else:
            assert not self.retrying, "what failed goes first"
            self.check_fresh(items, batch.rows, now)
            self.waiting = [item for item in self.waiting if item not in items]
        self.running.append(batch)

    def check_fresh(self, items: list[FakeItem], rows: int, now: float) -> None:
        assert len(items) == 1 or rows <= self.max_rows
        assert len(items) == 1 or self.joinable
        assert len({(item.key, item.priority) for item in items}) == 1
        group = [i for i in self.waiting if (i.key, i.priority) == (items[0].key, items[0].priority)]
        alive = [item for item in group if item.deadline_s > now or item in items]
        assert items == alive[: len(items)], "first come, first served within a key and a priority"
        if items[0].priority == 1 and not self.max_wait_s:
            assert all(item.deadline_s <= now for item in self.waiting if item.priority == 0)
        soonest = min(item.deadline_s for item in items)
        if len(items) > 1:
            assert now + self.latency.predict(max(rows, 1)) <= soonest

    def check_nothing_to_take(self, now: float) -> None:
        for item in self.waiting:
            if item.deadline_s > now:
                assert self.joinable and now < item.arrived_s + self.max_wait_s, f"{item} could run now"
                assert now < self.batcher.ready_s <= item.arrived_s + self.max_wait_s

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_waiting(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        self.batcher.cancel(item)
        self.batcher.cancel(item)  # twice is once
        self.waiting.remove(item)
        self.leave(item, "cancel")

    @precondition(lambda self: self.running or self.retrying)
    @rule(data=st.data())
    def cancel_running(self, data: st.DataObject) -> None:
        items = self.retrying + [item for batch in self.running for item in batch.items if not item.gone]
        if items:
            item = data.draw(st.sampled_from(items))
            self.batcher.cancel(item)
            if item in self.retrying:
                self.retrying.remove(item)
            self.leave(item, "cancel")

    @rule()
    def expire(self) -> None:
        now = self.clock()
        late = self.batcher.expire(now)
        assert set(late) == {item for item in self.waiting if item.deadline_s <= now}
        for item in late:
            assert item.gone
            self.waiting.remove(item)
            self.leave(item, "expired")
        assert self.batcher.expire(now) == []

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.running))
        self.running.remove(batch)
        self.settle(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), isolate=st.booleans())
    def fail(self, data: st.DataObject, isolate: bool) -> None:
        batch = data.draw(st.sampled_from(self.running))
        self.running.remove(batch)
        alive = [item for item in batch.items if not item.gone]
        split = self.batcher.isolate(batch) if isolate else self.batcher.halve(batch)
        assert split == (len(batch.items) >= 2 and len(alive) >= 1)
        if split:
            self.retrying += alive
        else:
            self.settle(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def not_started(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.running))
        self.running.remove(batch)
        self.batcher.again(batch)
        self.retrying += [item for item in batch.items if not item.gone]

    def settle(self, batch: Batch[FakeItem]) -> None:
        for item in batch.items:
            if not item.gone:
                item.gone = True
                self.leave(item, "settled")

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.batcher.waiting_items == len(self.waiting)
        assert self.batcher.waiting_rows == sum(item.rows for item in self.waiting)
        for priority in range(PRIORITIES):
            ahead = sum(item.rows for item in self.waiting if item.priority <= priority)
            assert self.batcher.rows_ahead(priority) == ahead
        retrying = [item for batch in self.batcher.retrying for item in batch.items if not item.gone]
        assert sorted(map(id, retrying)) == sorted(map(id, self.retrying))

    @invariant()
    def no_deadline_is_before_the_bound(self) -> None:
        assert all(item.deadline_s >= self.batcher.earliest_deadline_s for item in self.waiting)
        assert self.waiting or self.batcher.ready_s == inf

    @invariant()
    def memory_is_bounded(self) -> None:
        assert queued(self.batcher) <= 2 * len(self.waiting) + 65

    def teardown(self) -> None:
        self.clock.advance(10.0)
        while self.running:
            self.settle(self.running.pop())
        self.expire()
        for _ in range(len(self.waiting) + len(self.retrying)):
            self.take()
        while self.running:
            self.settle(self.running.pop())
        assert not self.waiting and not self.retrying and self.batcher.take(self.clock()) is None
        assert self.batcher.waiting_items == self.batcher.waiting_rows == 0
        assert not any(self.batcher._groups) or queued(self.batcher) <= 64


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("rows", "max_rows", "joinable", "wanted"),
    [
        ([1, 1, 1], 4, True, [[1, 1, 1]]),
        ([3, 2, 2], 4, True, [[3], [2, 2]]),
        ([9, 1], 4, True, [[9], [1]]),
        ([1, 9], 4, True, [[1], [9]]),
        ([4, 4], 4, True, [[4], [4]]),
        ([0, 0, 4, 1], 4, True, [[0, 0, 4], [1]]),
        ([1, 1, 1], 4, False, [[1], [1], [1]]),
        ([1] * 5, 1, True, [[1]] * 5),
    ],
)
def test_a_batch_is_the_longest_prefix_that_fits(
    rows: list[int], max_rows: int, joinable: bool, wanted: list[list[int]]
) -> None:
    batcher = a_batcher(max_rows, joinable=joinable)
    for count in rows:
        batcher.offer(FakeItem(count))
    assert [[item.rows for item in items] for items in drained(batcher)] == wanted


def test_high_priority_goes_first_and_groups_of_one_priority_take_turns() -> None:
    batcher = a_batcher(2)
    items = {
        name: FakeItem(1, priority=int(name[0] == "n"), key=name[1])
        for name in ("na1", "na2", "na3", "nb1", "nb2", "hc1")
    }
    for item in items.values():
        batcher.offer(item)
    names = {id(item): name for name, item in items.items()}
    order = [[names[id(item)] for item in batch] for batch in drained(batcher)]
    assert order == [["hc1"], ["na1", "na2"], ["nb1", "nb2"], ["na3"]]


def test_a_batch_stops_growing_where_it_would_miss_its_most_urgent_deadline() -> None:
    batcher = a_batcher(8, batch_s={1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08})
    for deadline_s in (1.0, 0.03, 1.0, 1.0, 1.0):
        batcher.offer(FakeItem(1, deadline_s))
    assert [len(items) for items in drained(batcher)] == [3, 2]


def test_who_can_no_longer_be_in_time_is_tried_all_the_same() -> None:
    batcher = a_batcher(8, batch_s={1: 5.0})
    batcher.offer(FakeItem(1, 0.1))
    batch = batcher.take(0.0)
    assert batch is not None and len(batch.items) == 1


def test_an_expired_item_at_the_head_holds_up_nobody() -> None:
    """A group with only expired items left used to end the search, and nothing woke the other groups."""
    batcher = a_batcher(8, batch_s={1: 0.1})
    late, other = FakeItem(1, 1.0, key="a"), FakeItem(1, 9.0, key="b")
    batcher.offer(late)
    batcher.offer(other)
    batch = batcher.take(2.0)
    assert batch is not None and batch.items == [other]
    assert batcher.take(2.0) is None
    assert batcher.expire(2.0) == [late]


def test_company_is_waited_for_until_it_comes_or_the_time_is_up() -> None:
    batcher = a_batcher(3, max_wait_s=0.5)
    batcher.offer(FakeItem(1, 9.0, arrived_s=1.0))
    assert batcher.take(1.0) is None and batcher.ready_s == 1.5
    batcher.offer(FakeItem(1, 9.0, arrived_s=1.2))
    assert batcher.take(1.2) is None and batcher.ready_s == 1.5
    batch = batcher.take(1.5)
    assert batch is not None and len(batch.items) == 2 and batcher.ready_s == inf
    for _ in range(3):
        batcher.offer(FakeItem(1, 9.0, arrived_s=2.0))
    full = batcher.take(2.0)
    assert full is not None and len(full.items) == 3, "a full batch waits for nobody"


def test_who_waits_for_company_does_not_miss_the_deadline_for_it() -> None:
    batcher = a_batcher(8, max_wait_s=5.0, batch_s={1: 0.1})
    batcher.offer(FakeItem(1, 1.0))
    assert batcher.take(0.0) is None and batcher.ready_s == pytest.approx(0.9)
    assert batcher.take(0.95) is not None


def test_a_group_that_waits_for_company_holds_up_no_other() -> None:
    batcher = a_batcher(2, max_wait_s=5.0)
    batcher.offer(FakeItem(1, 9.0, key="a"))
    pair = [FakeItem(1, 9.0, key="b"), FakeItem(1, 9.0, key="b")]
    for item in pair:
        batcher.offer(item)
    batch = batcher.take(0.0)
    assert batch is not None and batch.items == pair


@given(count=st.integers(2, 64), poisoned=st.integers(0, 63))
def test_halving_finds_one_poisoned_item_in_few_calls(count: int, poisoned: int) -> None:
    poisoned %= count
    batcher = a_batcher(count)
    items = [FakeItem(1) for _ in range(count)]
    for item in items:
        batcher.offer(item)
    calls, well, ill = 0, 0, []
    while (batch := batcher.take(0.0)) is not None:
        calls += 1
        if items[poisoned] not in batch.items:
            well += len(batch.items)
        elif not batcher.halve(batch):
            ill += batch.items
    assert ill == [items[poisoned]] and well == count - 1
    assert calls <= 2 * ceil(log2(count)) + 1


@given(exponent=st.integers(1, 6), poisoned=st.integers(0, 63))
def test_an_innocent_item_waits_for_as_few_failures_as_halving_has_levels(
    exponent: int, poisoned: int
) -> None:
    """Whoever shares a half with the culprit, or not: the half without it is never behind the search in the
    other. With halves tried depth first, the last is answered after the culprit itself."""
    count = 2**exponent
    poisoned %= count
    batcher = a_batcher(count)
    items = [FakeItem(1) for _ in range(count)]
    for item in items:
        batcher.offer(item)
    failures, seen = 0, {}
    while (batch := batcher.take(0.0)) is not None:
        if items[poisoned] in batch.items:
            failures += 1
            batcher.halve(batch)
        else:
            seen[len(batch.items)] = failures
    # The half of each size waits for the failures of larger ones, and of at most the one of its own size.
    for size, before in seen.items():
        assert before <= exponent - size.bit_length() + 2


def test_isolated_items_are_tried_in_their_order_one_failure_each() -> None:
    batcher = a_batcher(8)
    items = [FakeItem(1) for _ in range(5)]
    for item in items:
        batcher.offer(item)
    batch = batcher.take(0.0)
    assert batch is not None and batcher.isolate(batch)
    batcher.cancel(items[2])
    assert drained(batcher) == [[items[0]], [items[1]], [items[3]], [items[4]]]


def test_a_batch_that_never_started_goes_again_whole_and_first() -> None:
    batcher = a_batcher(2)
    items = [FakeItem(1) for _ in range(4)]
    for item in items:
        batcher.offer(item)
    first = batcher.take(0.0)
    assert first is not None
    batcher.again(first)
    assert first.tries == 1 and drained(batcher) == [items[:2], items[2:]]


def test_callers_that_come_and_go_while_nothing_runs_leave_no_memory_behind() -> None:
    batcher = a_batcher()
    stays = FakeItem(1)
    batcher.offer(stays)
    for key in range(10_000):
        item = FakeItem(1, key=key % 100)
        batcher.offer(item)
        batcher.cancel(item)
    assert queued(batcher) <= 66 and batcher.waiting_items == 1
    assert sum(map(len, batcher._groups)) <= 66
    assert drained(batcher) == [[stays]]


def test_a_largest_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="largest batch of 0 rows"):
        a_batcher(0)
