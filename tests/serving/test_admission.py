"""Admission: nobody is let in who would be late, nobody is turned away from an empty lane."""

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.core.errors import DeadlineExceeded, Overloaded, RequestTooLarge
from interlock.core.request import PRIORITY_HIGH, PRIORITY_NORMAL
from interlock.serving.admission import QueueView, decide, predicted_wait_s

views = st.builds(
    QueueView,
    waiting_rows=st.integers(0, 2000),
    queue_rows=st.integers(1, 1000),
    batch_rows=st.integers(1, 256),
    batch_s=st.floats(0.0, 5.0),
    busy_left_s=st.floats(0.0, 5.0),
    slots=st.integers(1, 4),
)
rows = st.integers(1, 500)
priorities = st.sampled_from([PRIORITY_HIGH, PRIORITY_NORMAL])


@given(view=views, fewer=rows, more=rows)
def test_more_rows_never_wait_less(view: QueueView, fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    assert predicted_wait_s(view, fewer) <= predicted_wait_s(view, more)
    longer = replace(view, waiting_rows=view.waiting_rows + more)
    assert predicted_wait_s(view, fewer) <= predicted_wait_s(longer, fewer)
    wider = replace(view, slots=view.slots + 1)
    assert predicted_wait_s(wider, fewer) <= predicted_wait_s(view, fewer)


@given(view=views, rows=rows, left_s=st.floats(1e-9, 1e6), priority=priorities)
def test_an_empty_lane_refuses_nobody_before_the_deadline(
    view: QueueView, rows: int, left_s: float, priority: int
) -> None:
    empty = replace(view, waiting_rows=0, busy_left_s=0.0)
    assume(rows <= view.queue_rows)
    assert decide(empty, rows, left_s, priority, 0.0) is None


@given(view=views, rows=rows, deadline_s=st.floats(-1.0, 20.0), priority=priorities)
def test_whoever_waits_is_expected_in_time_and_in_bounds(
    view: QueueView, rows: int, deadline_s: float, priority: int
) -> None:
    refusal = decide(view, rows, deadline_s, priority, 0.0)
    if deadline_s <= 0.0:
        assert isinstance(refusal, DeadlineExceeded)
    elif rows > view.queue_rows:
        assert isinstance(refusal, RequestTooLarge)
    elif refusal is None:
        assert rows <= view.queue_rows
        if view.waiting_rows:
            assert view.waiting_rows + rows <= view.queue_rows
        if view.waiting_rows or view.busy_left_s > 0.0:
            assert predicted_wait_s(view, rows) <= deadline_s
    else:
        assert isinstance(refusal, Overloaded) and refusal.retry_after_s == predicted_wait_s(view, rows)


@given(view=views, rows=rows, fewer=rows, left_s=st.floats(0.001, 20.0), priority=priorities)
def test_whoever_gets_in_would_with_fewer_rows_with_more_time_and_with_high_priority(
    view: QueueView, rows: int, fewer: int, left_s: float, priority: int
) -> None:
    if decide(view, rows, left_s, priority, 0.0) is None:
        assert decide(view, min(fewer, rows), left_s, priority, 0.0) is None
        assert decide(view, rows, left_s * 2, priority, 0.0) is None
        assert decide(view, rows, left_s, PRIORITY_HIGH, 0.0) is None


def test_the_last_tenth_of_the_queue_is_for_high_priority() -> None:
    view = QueueView(90, 100, 10, 0.001, 0.0, 1)
    refusal = decide(view, 1, 10.0, PRIORITY_NORMAL, 0.0)
    assert isinstance(refusal, Overloaded) and "90 rows wait already, the limit is 90" in refusal.message
    assert decide(view, 10, 10.0, PRIORITY_HIGH, 0.0) is None
    assert isinstance(decide(view, 11, 10.0, PRIORITY_HIGH, 0.0), Overloaded)


def test_a_refusal_says_what_was_asked_and_what_is_the_limit() -> None:
    view = QueueView(10, 100, 10, 1.0, 0.5, 1)
    late = decide(view, 1, 1.0, PRIORITY_NORMAL, 0.0)
    assert late is not None and late.message == "the answer would take 2.500 s and the deadline is in 1.000 s"
    large = decide(view, 101, 9.0, PRIORITY_NORMAL, 0.0)
    assert large is not None and large.message.startswith("101 rows in one request: the queue holds 100")
    past = decide(view, 1, 1.0, PRIORITY_NORMAL, 1.25)
    assert past is not None and "passed 0.250 s before" in past.message


@given(view=views, ahead=rows, behind=rows, asked=rows, left_s=st.floats(0.001, 20.0))
def test_only_the_bound_of_the_queue_counts_what_waits_behind(
    view: QueueView, ahead: int, behind: int, asked: int, left_s: float
) -> None:
    view = replace(view, queue_rows=ahead + behind + asked)
    alone = replace(view, waiting_rows=ahead)
    both = replace(view, waiting_rows=ahead + behind, ahead_rows=ahead)
    assert predicted_wait_s(both, asked) == predicted_wait_s(alone, asked)
    assume(ahead > 0)
    mine, theirs = (decide(one, asked, left_s, PRIORITY_HIGH, 0.0) for one in (alone, both))
    assert (mine is None) == (theirs is None)
