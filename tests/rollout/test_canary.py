"""Whole canaries, simulated with fixed seeds: false alarms, detection, promotion, and the harm that each
costs."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from interlock.core.policy import Policy, Undecided
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.plan import CANARY, Fail, Finish, Hold, Keep, Pause, RollBack, Weight, next_action
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.tally import ArmTally, EpochTally
from tests.rollout.canaries import START_S, Canary, Ended, constant, decisions_only

ROLLED_BACK, PAUSED, PROMOTED = ReleaseState.ROLLING_BACK, ReleaseState.PAUSED, ReleaseState.SWITCHING


def runs(canary: Canary, times: int, seed: int, most_s: float = 3600.0) -> list[Ended]:
    rng = np.random.default_rng(seed)
    with decisions_only():
        return [canary.run(rng, most_s) for _ in range(times)]


def states(found: list[Ended]) -> Counter[ReleaseState]:
    return Counter(one.state for one in found)


@pytest.mark.slow
def test_a_clean_candidate_is_promoted_within_a_minute_at_100_requests_a_second() -> None:
    found = runs(Canary(constant(0.0), constant(0.0)), 5, 1)
    assert states(found) == {PROMOTED: 5} and max(one.spent_s for one in found) < 60.0


@pytest.mark.parametrize(("rate", "requests"), [(0.52, 40), pytest.param(0.12, 200, marks=pytest.mark.slow)])
def test_a_much_worse_candidate_is_rolled_back_soon(rate: float, requests: int) -> None:
    found = runs(Canary(constant(0.02), constant(rate)), 12, 2)
    assert states(found) == {ROLLED_BACK: 12}
    assert np.mean([one.harm for one in found]) < 15 and np.median([one.requests for one in found]) < requests


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.03, 0.05])
def test_a_slightly_worse_candidate_is_stopped_within_the_budget(rate: float) -> None:
    found = runs(Canary(constant(0.02), constant(rate), tick_s=1.0), 15, 3)
    seen = states(found)
    assert seen[ROLLED_BACK] + seen[PAUSED] == 15
    # One point more takes longer to prove than the budget lasts: mostly it is a person who decides.
    assert rate < 0.05 or seen[ROLLED_BACK] >= 12
    assert max(one.harm for one in found) <= Policy().budget


@pytest.mark.parametrize(("slower", "requests"), [(3.0, 15), pytest.param(1.5, 1500, marks=pytest.mark.slow)])
def test_a_slower_candidate_is_rolled_back(slower: float, requests: int) -> None:
    found = runs(Canary(constant(0.0), constant(0.0), slower=slower), 10, 4)
    assert states(found) == {ROLLED_BACK: 10}
    assert np.median([one.requests for one in found]) < requests


@pytest.mark.slow
def test_the_same_version_is_not_rolled_back_while_both_rates_and_the_traffic_drift() -> None:
    """Rates of 2, 5 and 8 % one after another, and traffic that doubles: what fools tests that pool the
    epochs."""

    def drift(now_s: float) -> float:
        return (0.02, 0.05, 0.08)[min(int((now_s - START_S) // 40), 2)]

    def traffic(now_s: float) -> float:
        return 100.0 if now_s < START_S + 60 else 200.0

    found = runs(Canary(drift, drift, traffic, policy=Policy(budget=1000), tick_s=1.0), 20, 5, 240.0)
    assert states(found)[ROLLED_BACK] == 0


@pytest.mark.slow
def test_a_good_candidate_is_seldom_rolled_back_and_mostly_promoted() -> None:
    seen = states(runs(Canary(constant(0.01), constant(0.01), tick_s=1.0), 15, 6))
    assert seen[ROLLED_BACK] == 0 and seen[PROMOTED] >= 12


# --- single decisions ---

DEFAULT = Policy()
QUIET = ArmTally(500, 0, 500, 500)


def canary(
    state: ReleaseState = ReleaseState.RAMPING,
    policy: Policy = DEFAULT,
    incumbent: ArmTally = QUIET,
    candidate: ArmTally = QUIET,
) -> Snapshot:
    """A release that has had half of the requests for a minute."""
    rig = Canary(constant(0.0), constant(0.0), policy=policy)
    row = rig_row(state, policy)
    snap = rig.snapshot(row, [RampEpoch(1, 0.5, (), START_S)], {}, START_S + 60.0, 100.0)
    counts = EpochTally(1, 0.5, (), START_S, incumbent, candidate)
    assert snap.ramp is not None
    return msgspec.structs.replace(snap, ramp=msgspec.structs.replace(snap.ramp, epochs=(counts,)))


def rig_row(state: ReleaseState, policy: Policy) -> ReleaseRow:
    return ReleaseRow(9, "iris", "2", CANARY, state, "", "1", 1, START_S, START_S, None, policy, 0.5)


def ramp(snap: Snapshot, **changes: object) -> Snapshot:
    assert snap.ramp is not None
    return msgspec.structs.replace(snap, ramp=msgspec.structs.replace(snap.ramp, **changes))


FAILING = ArmTally(500, 200, 500, 500)


@pytest.mark.parametrize("state", [ReleaseState.RAMPING, ReleaseState.PAUSED])
def test_a_crash_a_quarantine_or_proof_against_it_rolls_back_also_what_is_paused(state: ReleaseState) -> None:
    snap = canary(state)
    assert isinstance(next_action(snap), Hold)
    assert next_action(ramp(snap, crashes=1)) == RollBack("version 2 ended its process 1 times")
    given_up = next_action(msgspec.structs.replace(snap, quarantined="crashed 5 times"))
    assert given_up == RollBack("version 2 is quarantined: crashed 5 times")
    assert isinstance(next_action(canary(state, candidate=FAILING)), RollBack)


def test_the_time_limit_holds_or_rolls_back_as_the_policy_says_and_begins_anew_when_resumed() -> None:
    held = canary(policy=Policy(time_limit_s=59.0))
    action = next_action(held)
    assert isinstance(action, Pause) and action.weight is None and "undecided after 59 s" in action.reason
    rolled = canary(policy=Policy(time_limit_s=59.0, undecided=Undecided.ROLL_BACK))
    assert isinstance(next_action(rolled), RollBack)
    resumed = msgspec.structs.replace(held.release, resumed_s=START_S + 30.0)
    assert isinstance(next_action(msgspec.structs.replace(held, release=resumed)), Hold)


def test_a_wrong_ratio_takes_all_requests_from_the_candidate_and_asks() -> None:
    action = next_action(canary(candidate=ArmTally(300, 0, 300, 300)))
    assert isinstance(action, Pause) and action.weight == 0.0 and action.reason.startswith("sample ratio")


def test_a_budget_that_is_used_up_takes_all_requests_from_the_candidate_and_asks() -> None:
    both = ArmTally(500, 100, 500, 500)
    action = next_action(canary(policy=Policy(budget=5), incumbent=both, candidate=both))
    assert isinstance(action, Pause) and action.weight == 0.0 and "--budget" in action.reason


@pytest.mark.parametrize("unit", ["header", "json:user"])
def test_sticky_units_are_not_sent_back_and_forth(unit: str) -> None:
    both = ArmTally(500, 12, 500, 500)
    lower = next_action(canary(policy=Policy(budget=15), incumbent=both, candidate=both))
    assert isinstance(lower, Weight) and lower.weight < 0.5
    sticky = next_action(canary(policy=Policy(budget=15, unit=unit), incumbent=both, candidate=both))
    assert isinstance(sticky, Pause) and sticky.weight == 0.0


def test_no_new_weight_before_every_worker_has_read_the_last_one() -> None:
    snap = canary()
    row = msgspec.structs.replace(snap.release, weight=0.05)
    snap = msgspec.structs.replace(snap, release=row)
    assert isinstance(next_action(snap), Weight)
    (worker,) = snap.workers
    late = msgspec.structs.replace(worker, seen_revision=4)
    assert isinstance(next_action(msgspec.structs.replace(snap, workers=(late,))), Hold)


def test_a_canary_of_a_model_that_is_not_live_takes_all_requests_at_once() -> None:
    snap = msgspec.structs.replace(canary(ReleaseState.PREPARING), live=None)
    assert type(next_action(snap)).__name__ == "Switch"


def test_a_rollback_ends_when_every_worker_has_read_of_it() -> None:
    row = msgspec.structs.replace(rig_row(ReleaseState.ROLLING_BACK, Policy()), reason="it failed")
    snap = msgspec.structs.replace(canary(), release=row)
    assert next_action(snap) == Fail("it failed; version 1 stays live")
    gone = tuple(msgspec.structs.replace(w, connected=False) for w in snap.workers)
    waiting = msgspec.structs.replace(snap, workers=gone)
    assert isinstance(next_action(waiting), Hold)
    late = next_action(msgspec.structs.replace(waiting, waited_s=31.0))
    assert late == Fail("it failed; not acknowledged by worker-0; version 1 stays live")


def test_the_old_version_is_kept_for_as_long_as_it_was_asked() -> None:
    snap = canary(ReleaseState.SWITCHING, Policy(keep_s=100.0))
    assert next_action(snap) == Keep()
    keeping = canary(ReleaseState.KEEPING, Policy(keep_s=100.0))
    assert isinstance(next_action(keeping), Hold)
    assert next_action(ramp(keeping, now_s=START_S + 101.0)) == Finish()
    broken = msgspec.structs.replace(keeping, quarantined="crashed")
    assert isinstance(next_action(broken), RollBack)


def test_promotion_says_what_was_proved() -> None:
    found = Canary(constant(0.0), constant(0.0)).run(np.random.default_rng(7), 600.0)
    assert found.state is PROMOTED and found.reason.count("within margin") == 2
