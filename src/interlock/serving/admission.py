"""Admission: whether a request may wait at all; pure, asked twice (on header facts, then on decoded ones).

A request that would be answered after its deadline is refused at once: first come, first served without this
collapses to no goodput at all when load exceeds capacity (every answer is late).
"""

import msgspec

from interlock.core.clock import in_words
from interlock.core.errors import DeadlineExceeded, Overloaded, RequestTooLarge, Unavailable
from interlock.core.request import PRIORITY_HIGH

HIGH_RESERVE = 0.1
"""The share of the queue that only high priority may fill."""


class QueueView(msgspec.Struct, gc=False):
    """What admission sees of a lane: rows waiting, the batch under way, and what batches cost.

    `batch_s` is the predicted time of a full batch of `batch_rows`; `busy_left_s` what the running ones
    still need; `slots` how many run side by side; `ahead_rows` those of the waiting rows that go first, by
    default all.
    """

    waiting_rows: int
    queue_rows: int
    batch_rows: int
    batch_s: float
    busy_left_s: float
    slots: int
    ahead_rows: int | None = None


def predicted_wait_s(queue: QueueView, rows: int) -> float:
    """Seconds until `rows` more rows would be answered, were they to come last of those of their priority.

    >>> predicted_wait_s(QueueView(0, 100, 10, 0.01, 0.0, 1), 1)
    0.01
    """
    ahead_rows = queue.waiting_rows if queue.ahead_rows is None else queue.ahead_rows
    batches = -(-(ahead_rows + rows) // queue.batch_rows)
    return queue.busy_left_s + -(-batches // queue.slots) * queue.batch_s


def decide(
    queue: QueueView, rows: int, deadline_s: float, priority: int, now: float
) -> Unavailable | RequestTooLarge | None:
    """Why a request must be turned away, or None.

    A request that finds the lane empty is always admitted while its deadline lies ahead: a prediction that
    is too pessimistic must not lock a model out for ever, for only requests correct it.
    """
    if now >= deadline_s:
        return DeadlineExceeded(
            f"the deadline passed {in_words(now - deadline_s)} before the request was read"
        )
    if rows > queue.queue_rows:
        return RequestTooLarge(f"{rows} rows in one request: the queue holds {queue.queue_rows}; send fewer")
    limit = queue.queue_rows
    if priority != PRIORITY_HIGH:
        limit = int(limit * (1 - HIGH_RESERVE)) or 1
    if queue.waiting_rows and queue.waiting_rows + rows > limit:
        wait_s = predicted_wait_s(queue, rows)
        return Overloaded(
            f"{queue.waiting_rows} rows wait already, the limit is {limit}; try again later", wait_s
        )
    if queue.waiting_rows == 0 and queue.busy_left_s <= 0.0:
        return None
    wait_s = predicted_wait_s(queue, rows)
    if now + wait_s > deadline_s:
        return Overloaded(
            f"the answer would take {in_words(wait_s)} and the deadline is in {in_words(deadline_s - now)}",
            wait_s,
        )
    return None
