"""The ramp: never more than the budget allows, never down without need, and on few steps."""

from hypothesis import given
from hypothesis import strategies as st

from interlock.core.policy import Policy
from interlock.rollout.ramp import LEAST_RATE_PER_S, OVERSHOOT, REACTION_S, allowance, on_grid

POLICIES = st.builds(Policy, budget=st.floats(1, 1000), margin=st.floats(0.0001, 0.1))


@given(POLICIES, st.integers(0, 100_000), st.floats(-1, 1), st.floats(0, 1e5), st.floats(0, 0.5))
def test_what_comes_in_before_a_reaction_fits_into_what_is_left(
    policy: Policy, requests: int, excess: float, rate_per_s: float, weight: float
) -> None:
    found = allowance(policy, requests, excess, rate_per_s, weight)
    assert 0 <= found.weight <= max(policy.most_weight, weight)
    if found.weight and found.requests is not None:
        at_once = found.weight * max(rate_per_s, LEAST_RATE_PER_S) * REACTION_S
        assert at_once <= found.requests + 1e-6
        assert (requests + found.requests) * (excess - policy.margin) <= policy.budget * (1 + 1e-9)
        if found.weight > weight:
            assert at_once * excess <= OVERSHOOT * policy.budget * (1 + 1e-6)


@given(POLICIES, st.integers(0, 10_000), st.floats(-1, 1), st.floats(0, 1e4), st.floats(0, 0.5))
def test_more_knowledge_never_lowers_a_weight(
    policy: Policy, requests: int, excess: float, rate_per_s: float, weight: float
) -> None:
    worse = allowance(policy, requests, excess, rate_per_s, weight).weight
    assert allowance(policy, requests, excess / 2 - 0.5, rate_per_s, weight).weight >= worse


def test_the_steps_are_few() -> None:
    steps = {on_grid(k / 10_000, 0.5) for k in range(10_001)}
    assert sorted(steps) == [
        0.0,
        0.0001,
        0.0002,
        0.0005,
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
    ]


def test_a_budget_of_nothing_left_gives_nothing() -> None:
    assert allowance(Policy(budget=10), 5000, 0.01, 100.0, 0.1).weight == 0.0
    assert allowance(Policy(budget=10), 5000, 0.004, 100.0, 0.1).requests is None
