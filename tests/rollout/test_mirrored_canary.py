"""Whole releases in which both versions run the same requests, simulated with fixed seeds: what is promised
of them, each beside the change that would break it.

The default is a canary that begins as a shadow, whose requests the incumbent runs too, and whose clients it
helps. Other tools' rules in the same traffic: benchmarks/bench_rules.py.
"""

from collections import Counter
from collections.abc import Iterator
from math import sqrt

import msgspec
import numpy as np
import pytest

from interlock.core.policy import Policy
from interlock.registry.rows import ReleaseState
from interlock.rollout import gate, plan
from interlock.rollout.mirroring import settled
from interlock.rollout.plan import SHADOW
from tests.rollout.canaries import START_S, Canary, Ended, both_fail, constant, decisions_only
from tests.rollout.test_mirroring import version

pytestmark = pytest.mark.slow

ROLLED_BACK, PAUSED, PROMOTED, PASSED = (
    ReleaseState.ROLLING_BACK,
    ReleaseState.PAUSED,
    ReleaseState.SWITCHING,
    ReleaseState.PASSED,
)
DEFAULT = Policy(shadow=1.0, reverse=1.0, shielded=True, most_disagreement=0.2)
REVERSE = Policy(shadow=0.0, reverse=1.0, shielded=False, most_disagreement=1.0)
"""A canary from the first request, whose clients are not helped: its harm is what the ramp lets through."""
COPIES = Policy(shadow=1.0, reverse=0.0, shielded=False, most_disagreement=0.2)
BY_USER = msgspec.structs.replace(DEFAULT, unit="header")
PATIENT = msgspec.structs.replace(DEFAULT, budget=1e4)
PATIENT_BY_USER = msgspec.structs.replace(BY_USER, budget=1e4)
NONE, USUAL, FIVE = constant(0.0), constant(0.02), constant(0.05)


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    with decisions_only():
        yield


def runs(canary: Canary, times: int, seed: int, most_s: float = 3600.0) -> list[Ended]:
    rng = np.random.default_rng(seed)
    return [canary.run(rng, most_s) for _ in range(times)]


def states(found: list[Ended]) -> Counter[ReleaseState]:
    return Counter(one.state for one in found)


def is_rare(count: int, times: int, limit: float = Policy().alpha) -> bool:
    """Whether so many of the runs are a share of at most `limit`, give or take three standard errors."""
    return count / times <= limit + 3 * sqrt(limit * (1 - limit) / times)


def mean_harm(found: list[Ended]) -> tuple[float, float]:
    """Failures that clients saw beyond the incumbent's: the mean, and its standard error."""
    harm = np.array([one.harm for one in found])
    return float(harm.mean()), float(harm.std() / sqrt(len(harm)))


# --- the simulation itself ---


def test_the_default_is_what_is_settled_where_both_versions_allow_everything() -> None:
    assert settled(Policy(), version("1"), version("2")) == DEFAULT
    assert settled(Policy(), version("1"), version("2"), answers=False) == COPIES


def test_pairs_fail_at_their_own_rates_and_together_as_often_as_they_are_told() -> None:
    drawn = np.random.default_rng(1).random(200_000)
    theirs, ours = both_fail(np.full(200_000, 0.02), np.full(200_000, 0.05), 0.9, drawn)
    assert (theirs.mean(), ours.mean()) == pytest.approx((0.02, 0.05), rel=0.05)
    assert ours[theirs].mean() == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="90%"):
        both_fail(np.full(1, 0.02), np.full(1, 0.01), 0.9, drawn[:1])


def test_what_simulations_leave_out_changes_no_decision() -> None:
    """Fails where a decision reads a forecast."""
    quick = Canary(USUAL, USUAL, policy=REVERSE).run(np.random.default_rng(3), 60.0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gate.requests_needed", "paired_gates.requests_needed"):
            patch.setattr(f"interlock.rollout.{name}", lambda *given: 1.0)
        assert Canary(USUAL, USUAL, policy=REVERSE).run(np.random.default_rng(3), 60.0) == quick


def test_a_shield_hides_what_the_incumbent_can_answer_and_nothing_else() -> None:
    """Fails where the shield counts a client twice, or none."""
    shielded = msgspec.structs.replace(DEFAULT, shadow=0.0)
    (seen,) = runs(Canary(constant(0.1), constant(0.5), policy=shielded), 1, 4, 60.0)
    assert seen.visible == seen.pairs.unshielded <= seen.failed
    assert seen.failed == seen.pairs.shielded + seen.pairs.unshielded == seen.pairs.worse + seen.pairs.bad
    (bare,) = runs(Canary(constant(0.1), constant(0.5), policy=REVERSE), 1, 4, 60.0)
    assert bare.visible == bare.failed > 0 == bare.pairs.shielded


# --- good candidates ---


def test_a_clean_candidate_is_promoted_within_a_minute() -> None:
    """Fails where the shadow or a small share keeps it for long: the proof alone takes 1,220 requests."""
    found = runs(Canary(NONE, NONE, policy=DEFAULT), 4, 5)
    assert states(found) == {PROMOTED: 4} and max(one.spent_s for one in found) < 60.0
    assert all(one.weights[0] == 0.0 and one.requests < 1500 for one in found)


def test_low_traffic_gets_there_too() -> None:
    """One request a second, and so an hour. Fails where time ends it in place of evidence."""
    (found,) = runs(Canary(NONE, NONE, constant(1.0), policy=DEFAULT, tick_s=5.0), 1, 6, 7200.0)
    assert found.state is PROMOTED and found.spent_s < 4500.0


@pytest.mark.parametrize("copied", [0.5, 0.0])
def test_where_copies_find_no_place_it_goes_on_as_a_canary(copied: float) -> None:
    """Fails where only pairs bound the harm or prove anything, and where what was dropped counts against the
    candidate."""
    found = runs(Canary(NONE, NONE, policy=DEFAULT, copied=copied), 3, 7, 600.0)
    assert states(found) == {PROMOTED: 3} and min(one.pairs.dropped for one in found) > 300
    assert copied or all(one.pairs.good == 0 for one in found)


@pytest.mark.slow
def test_a_good_candidate_is_promoted_nearly_always_and_costs_its_clients_nothing() -> None:
    """Fails where the ramp goes by counts of each version alone: every third run is then paused."""
    the_same = runs(Canary(USUAL, USUAL, policy=DEFAULT, tick_s=1.0), 30, 9)
    assert states(the_same)[PROMOTED] >= 28 and is_rare(states(the_same)[ROLLED_BACK], 30)
    assert np.median([one.spent_s for one in the_same]) < 120.0
    mean, error = mean_harm(the_same)
    assert mean <= 3 * error  # with the shield fewer of its clients fail than of the incumbent's


def drift(now_s: float) -> float:
    """2, 5 and 8 %, while the weight grows."""
    return (0.02, 0.05, 0.08)[min(int((now_s - START_S) // 40), 2)]


def doubling(now_s: float) -> float:
    return 100.0 if now_s < START_S + 60 else 200.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("same", "times", "most_s"),
    [
        (Canary(USUAL, USUAL, policy=PATIENT, tick_s=10.0), 30, 1000.0),
        (Canary(drift, drift, doubling, policy=PATIENT, tick_s=4.0), 30, 300.0),
        (Canary(FIVE, FIVE, policy=PATIENT_BY_USER, units=200, tick_s=10.0), 30, 1000.0),
        (Canary(FIVE, FIVE, policy=PATIENT_BY_USER, units=2000, tick_s=10.0), 12, 1000.0),
    ],
    ids=["constant", "ramp and drift", "200 users", "2000 users"],
)
def test_the_same_version_is_seldom_rolled_back_however_long_it_takes(
    same: Canary, times: int, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 requests without a promotion. Users have rates Beta(.5, 9.5), and each meets one version
    throughout. Fails, from the first to the last, where the limits are 10 in place of 900; where the epochs'
    counts are pooled; where errors by request raise an alarm, since a few users who always fail are then
    taken for many."""
    monkeypatch.setattr(plan, "LEAST_SERVED", 10**9)
    found = runs(same, times, 10, most_s)
    assert PROMOTED not in states(found)
    assert max(max(one.weights) for one in found) == 0.5
    assert is_rare(states(found)[ROLLED_BACK], times)
    assert is_rare(states(found)[PAUSED], times, Policy().alpha * gate.MISMATCH_SHARE)  # the sample ratio


@pytest.mark.slow
def test_the_same_version_gets_through_where_users_stick_to_it() -> None:
    """Fails where a proof is wanted for which nothing is gathered any more."""
    found = runs(Canary(FIVE, FIVE, policy=BY_USER, units=1000, tick_s=1.0), 10, 11, 400.0)
    assert states(found)[PROMOTED] >= 9


# --- bad candidates ---


@pytest.mark.parametrize(("rate", "requests"), [(0.52, 0), (0.12, 0), (0.05, 100)])
def test_a_much_worse_candidate_is_rolled_back_in_the_shadow(rate: float, requests: int) -> None:
    """Fails where a candidate answers before its copies have cleared it."""
    found = runs(Canary(USUAL, constant(rate), policy=DEFAULT), 10, 12)
    assert states(found) == {ROLLED_BACK: 10}
    assert np.mean([one.requests for one in found]) <= requests and max(one.harm for one in found) < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.025, 0.03])
def test_a_slightly_worse_candidate_never_gets_through(rate: float) -> None:
    """Fails where a margin of 5 points is proved in place of half a point."""
    found = runs(Canary(USUAL, constant(rate), policy=DEFAULT, tick_s=1.0), 10, 13)
    assert set(states(found)) <= {ROLLED_BACK, PAUSED}
    assert max(one.harm for one in found) < 25.0


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "times"), [(0.025, 24), (0.03, 16), (0.05, 16), (0.12, 16), (0.52, 16)])
def test_without_shadow_and_shield_it_costs_25_failures_at_most_on_average(rate: float, times: int) -> None:
    """G6, at a failure correlation of .9; benchmarks/bench_rules.py has the figures at .5. Fails where pairs
    are no alarm, or the first share is .5."""
    found = runs(Canary(USUAL, constant(rate), policy=REVERSE, tick_s=1.0), times, 14)
    assert set(states(found)) <= {ROLLED_BACK, PAUSED}
    assert mean_harm(found)[0] <= 25.0


@pytest.mark.parametrize(
    "broken",
    [
        Canary(NONE, NONE, policy=DEFAULT, disagreement=0.6),
        Canary(NONE, NONE, policy=DEFAULT, disagreement=1.0, unsound=1.0),
        Canary(NONE, NONE, policy=msgspec.structs.replace(DEFAULT, most_disagreement=1.0), unsound=0.1),
    ],
    ids=["flipped labels", "NaN", "NaN in a tenth"],
)
def test_wrong_answers_that_look_right_are_seen_before_anyone_gets_one(broken: Canary) -> None:
    """Fails where a gate of outputs is left out: nothing fails here and nothing is slow."""
    found = runs(broken, 10, 16)
    assert states(found) == {ROLLED_BACK: 10}
    assert all(one.requests == 0 and one.harm == 0.0 and one.pairs.good < 400 for one in found)


def test_answers_that_differ_a_little_are_promoted() -> None:
    """Fails where every difference counts, as a retrained version has some."""
    assert states(runs(Canary(NONE, NONE, policy=DEFAULT, disagreement=0.15), 3, 17)) == {PROMOTED: 3}


@pytest.mark.parametrize(("slower", "requests"), [(3.0, 15), (1.5, 500)])
def test_a_slower_candidate_is_rolled_back_within_few_requests_of_its_own(
    slower: float, requests: int
) -> None:
    """Fails where its latency does not count against it."""
    found = runs(Canary(NONE, NONE, policy=DEFAULT, slower=slower), 15, 18, 300.0)
    assert states(found) == {ROLLED_BACK: 15}
    assert np.median([one.requests for one in found]) <= requests


# --- a shadow that never answers ---


def shadow(rate: float, slower: float = 1.0) -> Canary:
    return Canary(USUAL, constant(rate), policy=COPIES, strategy=SHADOW, slower=slower)


def test_a_shadow_says_whether_the_candidate_would_do_and_answers_nobody() -> None:
    """Fails where a shadow is promoted, takes a share, or fails what is the same."""
    for rate, state in ((0.02, PASSED), (0.05, ROLLED_BACK), (0.52, ROLLED_BACK)):
        found = runs(shadow(rate), 6, 19, 300.0)
        assert states(found) == {state: 6}
        assert all(one.requests == 0 and one.harm == 0.0 and one.weights == [0.0] for one in found)


def test_a_shadow_that_is_slow_asks() -> None:
    """Fails where times of copies are no gate, or roll back: copies wait for clients."""
    found = runs(shadow(0.02, slower=3.0), 6, 20, 100.0)
    assert states(found) == {PAUSED: 6} and all("compute" in one.reason for one in found)


@pytest.mark.slow
def test_a_shadow_at_the_margin_seldom_passes() -> None:
    """Fails where a margin of 5 points is proved in place of half a point."""
    found = runs(shadow(0.025), 24, 21)
    assert is_rare(states(found)[PASSED], 24)
