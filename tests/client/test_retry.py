"""What is sent again, and when: within the budget, before the deadline, and never what may have run."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.client.retry import Again, Attempt, Budget, Failure, Policy, earn, next_try

POLICY = Policy()
FULL = Budget(POLICY.most_tokens, 0.0)
seconds = st.floats(0.0, 1e6)
attempts = st.builds(
    Attempt,
    failure=st.sampled_from(Failure),
    retried=st.integers(0, 200),
    may_repeat=st.booleans(),
    deadline_s=seconds,
    retry_after_s=st.floats(0.0, 1e5),
)
policies = st.builds(
    Policy,
    retries=st.integers(0, 100),
    first_s=st.floats(0.001, 1.0),
    longest_s=st.floats(1.0, 60.0),
    share=st.floats(0.0, 1.0),
    per_s=st.floats(0.0, 10.0),
    most_tokens=st.floats(1.0, 100.0),
)
chances = st.floats(0.0, 1.0, exclude_max=True)


@given(policies, st.floats(0.0, 100.0), attempts, seconds, chances)
def test_no_retry_is_unsafe_late_or_free(
    policy: Policy, tokens: float, attempt: Attempt, now: float, chance: float
) -> None:
    again = next_try(policy, Budget(tokens, 0.0), attempt, now, chance)
    if again is None:
        return
    assert attempt.failure is not Failure.MAYBE or attempt.may_repeat
    assert attempt.retried < policy.retries
    assert now + attempt.retry_after_s <= again.at_s < attempt.deadline_s
    assert again.budget.tokens >= 0
    longest_s = attempt.retry_after_s + max(policy.longest_s, policy.first_s)
    assert again.at_s <= now + longest_s + 1e-9 * (now + longest_s)


@given(policies, st.lists(st.tuples(st.booleans(), st.floats(0.0, 5.0)), max_size=60))
def test_retries_never_pass_what_requests_and_time_have_earned(
    policy: Policy, events: list[tuple[bool, float]]
) -> None:
    budget, now, requests, retries = Budget(policy.most_tokens, 0.0), 0.0, 0, 0
    for is_request, passed_s in events:
        now += passed_s
        if is_request:
            requests += 1
            budget = earn(policy, budget, now)
            continue
        attempt = Attempt(Failure.UNSENT, 0, False, deadline_s=1e9)
        again = next_try(msgspec.structs.replace(policy, retries=1), budget, attempt, now, 0.5)
        if again is not None:
            retries += 1
            budget = again.budget
    earned = policy.most_tokens + policy.share * requests + policy.per_s * now
    assert retries <= earned + 1e-6


def test_a_server_that_is_down_gets_a_tenth_more_requests_and_a_few() -> None:
    budget, sent, retried = FULL, 10_000, 0
    for at in range(sent):
        now = at / 1000  # all within ten seconds
        budget = earn(POLICY, budget, now)
        again = next_try(POLICY, budget, Attempt(Failure.UNSENT, 0, False, now + 10), now, 0.5)
        if again is not None:
            retried += 1
            budget = again.budget
    assert 0.1 * sent <= retried <= 0.1 * sent + 10 + 10


def test_the_budget_fills_with_time_up_to_its_brim() -> None:
    empty = Budget(0.0, 100.0)
    attempt = Attempt(Failure.UNSENT, 0, False, 1e9)
    assert next_try(POLICY, empty, attempt, 100.9, 0.0) is None
    assert isinstance(next_try(POLICY, empty, attempt, 101.1, 0.0), Again)
    assert earn(POLICY, empty, 1e6).tokens == POLICY.most_tokens


def test_time_that_goes_back_earns_nothing() -> None:
    assert earn(POLICY, Budget(0.0, 100.0), 50.0) == Budget(0.1, 100.0)


@pytest.mark.parametrize(
    ("attempt", "is_sent"),
    [
        (Attempt(Failure.UNSENT, 0, False, 10.0), True),
        (Attempt(Failure.REFUSED, 0, False, 10.0), True),
        (Attempt(Failure.MAYBE, 0, False, 10.0), False),
        (Attempt(Failure.MAYBE, 0, True, 10.0), True),
        (Attempt(Failure.REFUSED, 0, False, 10.0, retry_after_s=9.0), True),
        (Attempt(Failure.REFUSED, 0, False, 10.0, retry_after_s=10.0), False),
        (Attempt(Failure.UNSENT, 3, False, 10.0), False),
        (Attempt(Failure.UNSENT, 0, False, 0.02), False),
    ],
)
def test_each_rule_by_itself(attempt: Attempt, is_sent: bool) -> None:
    assert (next_try(POLICY, FULL, attempt, 0.0, 0.0) is not None) is is_sent


def test_waits_double_and_differ() -> None:
    def wait_s(retried: int, chance: float) -> float:
        attempt = Attempt(Failure.UNSENT, retried, False, 1e9)
        again = next_try(Policy(retries=100), FULL, attempt, 0.0, chance)
        assert again is not None
        return again.at_s

    assert [wait_s(n, 0.0) for n in range(3)] == pytest.approx([0.025, 0.05, 0.1])
    assert wait_s(0, 0.999) == pytest.approx(0.05, rel=1e-2)
    assert wait_s(99, 0.999) <= POLICY.longest_s
