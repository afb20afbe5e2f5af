"""Decides when a running batch counts as hung, and how one that failed is searched for the culprit."""

HUNG_SHARE = 0.25
HUNG_AT_LEAST_S = 0.5
HUNG_TIMES_PREDICTED = 4.0
CRASH_COSTS_S = 1.0
"""What a batch that ends its process costs: the start of another, and the supervisor's pauses."""


def hung_at(now: float, soonest_s: float, predicted_s: float, has_neighbours: bool) -> float:
    """When a place that can kill may give up a batch that begins `now`; all on the monotonic clock.

    Alone, a request may use its time up to its deadline (`soonest_s`). With neighbours, in its batch or
    behind it, it gets a share of what the most urgent one has left: early enough to try the halves five
    times over, so that the neighbours of a request that hangs the model are still answered. Never before four
    times what the batch is predicted to take: of a model that needs a twentieth of the time that its callers
    give it, ten times would be half of that time, and its second try would end at their deadlines.

    >>> hung_at(0.0, 10.0, 0.001, True), hung_at(0.0, 10.0, 0.001, False)
    (2.5, 10.0)
    >>> hung_at(0.0, 10.0, 0.5, True), hung_at(0.0, 10.0, 1.0, True)
    (2.5, 4.0)
    """
    allowed_s = soonest_s - now
    if has_neighbours:
        allowed_s *= HUNG_SHARE
    return now + max(allowed_s, HUNG_AT_LEAST_S, HUNG_TIMES_PREDICTED * predicted_s)


def one_by_one(items: int, alone_s: float) -> bool:
    """Whether a batch that ended its process is better tried item by item (each takes `alone_s`) than in
    halves, each level of which would cost another process.

    >>> one_by_one(8, 0.01), one_by_one(8, 5.0)
    (True, False)
    """
    return items * alone_s <= items.bit_length() * CRASH_COSTS_S
