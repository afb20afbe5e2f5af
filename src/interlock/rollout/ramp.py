"""Decides how much traffic a candidate may get now: by what harm it could still do, not by a timetable.

With N requests of the candidate so far and U an upper bound on its excess of bad answers that holds at all
times, the harm beyond the margin is at most N (U - margin). So it may be sent, until the next look at U,

    A = budget / (U - margin) - N more requests (without a limit once U <= margin),

and its weight spreads them over `HORIZON_S`. What comes in before a decision is in force everywhere is
bounded apart: weight * rate * REACTION_S requests, all of which might fail at U. The weight rises along a
1-2-5 grid (each step is an epoch) and stays while the requests of one more reaction fit into A. When they
do not, it falls to what A allows: a smaller share learns as much from each request. When A is used up, the
release stops and asks.
"""

from math import inf, log10

import msgspec

from interlock.core.policy import Policy

HORIZON_S = 10.0
REACTION_S = 1.0
"""From a bad answer to a weight in force everywhere: counted, decided, told, swapped."""
OVERSHOOT = 0.2
"""Of the budget may be lost within one reaction."""
LEAST_RATE_PER_S = 10.0
"""A model that is hardly asked may be asked more in a moment: the ramp reckons with at least so much
traffic."""
LEAST_WEIGHT = 1e-5
CAUTIOUS_WEIGHT = 0.2
CLEAR_MARGINS = 4.0
"""Until the excess is known to be below so many margins, the share stays at `CAUTIOUS_WEIGHT`: the larger
it is, the more requests of the candidate an alarm takes (twice as many at .5 as at .05), and the more of
the budget."""


class Allowance(msgspec.Struct, frozen=True):
    """`requests`: how many more the candidate may be sent at the present knowledge, None for no limit.
    `weight`: what it may have now; 0 when nothing more may be risked."""

    requests: float | None
    weight: float


def allowance(
    policy: Policy, candidate_requests: int, excess_most: float, rate_per_s: float, weight: float
) -> Allowance:
    """What may be risked now. `weight` is the one in force, `rate_per_s` the requests of the model.

    >>> allowance(Policy(budget=50), 0, 1.0, 100.0, 0.0).weight
    0.05
    >>> allowance(Policy(budget=50), 70, 0.5, 100.0, 0.5).weight
    0.02
    >>> allowance(Policy(budget=50), 1000, 0.5, 100.0, 0.05).weight
    0.0
    """
    rate_per_s = max(rate_per_s, LEAST_RATE_PER_S)
    beyond = excess_most - policy.margin
    left = inf if beyond <= 0 else max(policy.budget / beyond - candidate_requests, 0.0)
    if left < 1.0:
        return Allowance(left, 0.0)
    spread = left / (rate_per_s * HORIZON_S)
    at_once = OVERSHOOT * policy.budget / (rate_per_s * REACTION_S * max(excess_most, policy.margin))
    clear = excess_most <= CLEAR_MARGINS * policy.margin
    most = policy.most_weight if clear else min(policy.most_weight, CAUTIOUS_WEIGHT)
    found = on_grid(min(spread, at_once), most)
    if left > weight * rate_per_s * REACTION_S:
        found = max(found, weight)
    return Allowance(None if left == inf else left, found)


def on_grid(weight: float, most: float) -> float:
    """The largest step 1, 2, 5, 10 … that is not above `weight`, at most `most`; 0 below the first.

    >>> on_grid(0.07, 0.5), on_grid(0.9, 0.3), on_grid(1e-6, 0.5)
    (0.05, 0.3, 0.0)
    """
    if weight >= most:
        return most
    if weight < LEAST_WEIGHT:
        return 0.0
    decade = int(log10(weight) // 1)
    steps = (m * 10.0**d for d in (decade, decade + 1) for m in (1, 2, 5))
    return round(max((s for s in steps if s <= weight * (1 + 1e-9)), default=0.0), 12)
