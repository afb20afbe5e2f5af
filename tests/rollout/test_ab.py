"""A/B tests: the plan and the letter for several candidates, and who wins how often by chance."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.core.feedback import Metric
from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import Model
from interlock.core.policy import Policy, Share, Undecided
from interlock.evidence.bounded import Moments
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.ab import judge_all
from interlock.rollout.certificate import as_markdown, certify
from interlock.rollout.desired import ModelRow, build_desired
from interlock.rollout.metrics import MetricTally, Part
from interlock.rollout.plan import (
    AB,
    NEXT_STATE,
    Action,
    Fail,
    Hold,
    Pause,
    Promote,
    RollBack,
    Weight,
    as_record,
    next_action,
)
from interlock.rollout.replay import replay
from interlock.rollout.snapshot import RampView, Snapshot, Variant, WorkerView
from interlock.rollout.tally import ArmTally, EpochTally, tally_all
from tests.operations.homes import a_home, release_and_carry_out
from tests.rollout.test_desired import version

CLICK = Metric("click", age_s=0.0)
POLICY = Policy(
    metrics=(CLICK,),
    arms=(Share("2", 0.3), Share("3", 0.2)),
    unit="none",
    shadow=0.0,
    reverse=0.0,
    shielded=False,
    most_disagreement=1.0,
)
LIVE = ReleaseRow(5, "m", "1", "now", ReleaseState.DONE, "", None, 0, 1.0, 1.0, 1.0)
DIGESTS = {"2": "sha256:2", "3": "sha256:3"}


def row(state: ReleaseState, weight: float = 0.5, policy: Policy = POLICY) -> ReleaseRow:
    return ReleaseRow(9, "m", "2", AB, state, "", "1", 1 if weight else 0, 1.0, 1.0, None, policy, weight)


def workers(
    number: str, state: VersionState = VersionState.READY, reason: str = ""
) -> tuple[WorkerView, ...]:
    status = VersionStatus("m", number, DIGESTS[number], state, reason)
    return (WorkerView("worker-0", True, 10, 10, status),)


def clicks(asked: tuple[int, ...], clicked: tuple[int, ...]) -> MetricTally:
    """One epoch with what each arm was asked, and how many of these clicked: badness 0."""
    arms = tuple(Moments(count, 0.0, 0.0) for count in clicked)
    return MetricTally("click", (Part(1, 1.0, arms, asked),))


def seen(
    release: ReleaseRow,
    scored: MetricTally | None = None,
    *,
    bad: int = 0,
    now_s: float = 100.0,
    other: tuple[WorkerView, ...] | None = None,
    crashes: int = 0,
) -> Snapshot:
    fine = ArmTally(5000, 20, 5000, 5000)

    def epoch(share: float, bad: int) -> tuple[EpochTally, ...]:
        asked = round(5000 * share / 0.5)
        weight = share / (share + 0.5)
        return (EpochTally(1, weight, (), 1.0, fine, ArmTally(asked, bad, asked, asked)),)

    ramp = RampView(
        now_s,
        epoch(0.3, 12) if release.epoch else (),
        100.0,
        scored=() if scored is None else (scored,),
        others=(epoch(0.2, 8 + bad),) if release.epoch else (),
    )
    variant = Variant("3", DIGESTS["3"], workers("3") if other is None else other, crashes=crashes)
    return Snapshot(release, LIVE, DIGESTS["2"], 10, 1.0, workers("2"), ramp=ramp, variants=(variant,))


def decided(snapshot: Snapshot) -> Action:
    """What is decided, and that the log holds all that the decision saw."""
    action = next_action(snapshot)
    body = msgspec.json.decode(msgspec.json.encode(as_record(snapshot, action)))
    assert next_action(msgspec.convert(body["snapshot"], Snapshot)) == action
    return action


def test_all_candidates_are_ready_before_anyone_is_asked() -> None:
    preparing = row(ReleaseState.PREPARING, 0.0)
    loading = decided(seen(preparing, other=workers("3", VersionState.LOADING)))
    assert loading == Hold("worker-0 is loading")
    assert decided(seen(preparing)) == Weight(0.5, (), "the shares of the test")
    broken = decided(seen(preparing, other=workers("3", VersionState.FAILED, "no such file")))
    assert isinstance(broken, Fail) and "no such file" in broken.reason


def test_the_better_one_is_promoted_by_its_number() -> None:
    action = decided(seen(row(ReleaseState.RAMPING), clicks((5000, 3000, 2000), (500, 300, 320))))
    assert isinstance(action, Promote) and action.number == "3"
    assert "click better: candidate mean" in action.reason and "version 2" not in action.reason


def test_without_a_difference_it_goes_on_and_says_how_long() -> None:
    action = decided(seen(row(ReleaseState.RAMPING), clicks((5000, 3000, 2000), (500, 300, 200))))
    assert isinstance(action, Hold) and "not on its way" in action.why
    nearly = decided(seen(row(ReleaseState.RAMPING), clicks((5000, 3000, 2000), (500, 300, 240))))
    assert isinstance(nearly, Hold) and "more requests until it is promoted" in nearly.why


def test_what_is_worse_in_the_metric_or_fails_more_goes_back() -> None:
    worse = decided(seen(row(ReleaseState.RAMPING), clicks((5000, 3000, 2000), (500, 300, 90))))
    assert isinstance(worse, RollBack) and worse.reason.startswith("version 3: click: candidate mean")
    failing = decided(seen(row(ReleaseState.RAMPING), bad=100))
    assert isinstance(failing, RollBack) and failing.reason.startswith("version 3: errors: bad answers")
    crashed = decided(seen(row(ReleaseState.RAMPING), crashes=2))
    assert crashed == RollBack("version 3 ended its process 2 times")


def test_the_time_limit_asks_a_person_or_goes_back() -> None:
    late_s = POLICY.time_limit_s + 10.0
    assert isinstance(decided(seen(row(ReleaseState.RAMPING), now_s=late_s)), Pause)
    policy = msgspec.structs.replace(POLICY, undecided=Undecided.ROLL_BACK)
    back = decided(seen(row(ReleaseState.RAMPING, policy=policy), now_s=late_s))
    assert isinstance(back, RollBack) and "undecided after" in back.reason


def test_a_test_that_waits_for_a_person_goes_on_with_its_shares_when_it_is_resumed() -> None:
    resumed = msgspec.structs.replace(row(ReleaseState.RAMPING, 0.0), epoch=2)
    assert decided(seen(resumed)) == Weight(0.5, (), "resumed")


def test_the_letter_has_all_candidates_with_their_shares_and_then_the_winner_alone() -> None:
    versions = {number: version("m", number) for number in ("1", "2", "3")}

    def letter(release: ReleaseRow) -> tuple[set[str], list[tuple[int, str, float]]]:
        (one,) = build_desired("local", 1, [ModelRow(Model("m"), LIVE, release, versions)]).models
        assert one.route is not None and one.route.mirror is None
        return {v.number for v in one.versions}, [(a.index, a.version, a.weight) for a in one.route.arms]

    loaded, arms = letter(row(ReleaseState.PREPARING, 0.0))
    assert loaded == {"1", "2", "3"} and arms == [(0, "1", 1.0)]
    loaded, arms = letter(row(ReleaseState.RAMPING))
    assert loaded == {"1", "2", "3"} and arms == [(0, "1", 0.5), (1, "2", 0.3), (2, "3", 0.2)]
    paused = msgspec.structs.replace(row(ReleaseState.PAUSED, 0.0), epoch=2)
    assert letter(paused)[1] == [(0, "1", 1.0), (1, "2", 0.0), (2, "3", 0.0)]
    won = msgspec.structs.replace(row(ReleaseState.SWITCHING), number="3")
    assert letter(won) == ({"1", "3"}, [(0, "3", 1.0)])
    assert letter(row(ReleaseState.ROLLING_BACK)) == ({"1"}, [(0, "1", 1.0)])


def test_each_candidate_is_compared_with_the_incumbent_at_its_weight_among_the_two() -> None:
    epochs = [RampEpoch(1, 0.5, (), 1.0), RampEpoch(2, 0.0, (), 2.0)]
    found = tally_all(row(ReleaseState.RAMPING), POLICY.arms, "1", epochs, {})
    assert [[epoch.weight for epoch in of] for of in found] == [
        [pytest.approx(0.3 / 0.8), 0.0],
        [pytest.approx(0.2 / 0.7), 0.0],
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ()}, "has no verdict"),
        ({"arms": (Share("2", 0.6), Share("3", 0.4))}, "something left for the live version"),
        ({"arms": (Share("2", 0.0),)}, "at least 0.001"),
        ({"arms": (Share("2", 0.1), Share("2", 0.1))}, "stands there twice"),
        ({"metrics": (CLICK, CLICK)}, "stands there twice"),
        ({"metrics": tuple(Metric(f"m{n}") for n in range(9))}, "want at most 8"),
    ],
)
def test_what_cannot_be_a_test_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        msgspec.structs.replace(POLICY, **changes)
    assert said in error.value.message


@pytest.mark.slow
def test_of_candidates_that_are_no_better_any_is_promoted_at_most_as_often_as_it_says() -> None:
    alpha, trials = 0.05, 200
    policy = msgspec.structs.replace(POLICY, alpha=alpha)
    shares, promoted, stopped = np.array([0.5, 0.3, 0.2]), 0, 0
    nothing = tuple(
        (EpochTally(1, share / (share + 0.5), (), 1.0, ArmTally(), ArmTally()),) for share in (0.3, 0.2)
    )
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        asked, clicked = np.zeros(3, int), np.zeros(3, int)
        won = lost = False
        for _ in range(15):
            more = rng.multinomial(600, shares)
            asked, clicked = asked + more, clicked + rng.binomial(more, 0.1)
            scored = clicks(tuple(map(int, asked)), tuple(map(int, clicked)))
            found = judge_all(nothing, policy, None, 0, (scored,))
            won, lost = won or bool(found.winner), lost or bool(found.rollback)
        promoted, stopped = promoted + won, stopped + lost
    most = alpha * trials + 3.0 * math.sqrt(alpha * (1.0 - alpha) * trials)
    assert promoted <= most and stopped <= most, (promoted, stopped)


def test_its_certificate_has_each_candidate_and_says_what_the_verdict_is_worth(interlock_home: Path) -> None:
    ctx = a_home(interlock_home, m=3)
    try:
        release_and_carry_out(ctx, "m", "1")
        asked = ctx.ledger.request_release("m", "2", AB, 10.0, policy=POLICY)
        live = ctx.ledger.live("m")
        for state in (ReleaseState.PREPARING, ReleaseState.RAMPING, ReleaseState.SWITCHING):
            # What a look sees of a release with these numbers, and what it decides.
            seen_now = seen(row(ReleaseState.REQUESTED, 0.0))
            if state is not ReleaseState.PREPARING:
                of = ReleaseState.PREPARING if state is ReleaseState.RAMPING else ReleaseState.RAMPING
                won = clicks((5000, 3000, 2000), (500, 300, 320)) if of is ReleaseState.RAMPING else None
                seen_now = seen(row(of, 0.5 if won else 0.0), won)
            stands = ctx.ledger.release(asked.id)
            looked = msgspec.structs.replace(
                seen_now,
                live=live,
                release=msgspec.structs.replace(seen_now.release, id=asked.id, epoch=stands.epoch),
            )
            action = next_action(looked)
            assert NEXT_STATE[type(action)] is state
            ctx.ledger.advance(
                asked.id,
                state,
                getattr(action, "reason", ""),
                as_record(looked, action),
                time_s=11.0,
                epoch=RampEpoch(1, 0.5, (), 11.0) if isinstance(action, Weight) else None,
                number=action.number if isinstance(action, Promote) else None,
            )
        done = ctx.ledger.advance(asked.id, ReleaseState.DONE, time_s=12.0)
        found = certify(done, ctx.ledger.events("m"))
        assert found is not None and replay(ctx.ledger.events("m")) == []
        assert (found.candidate, found.incumbent, found.decided) == ("3", "1", "evidence")
        assert [stage.version for stage in found.stages] == ["2", "3"]
        assert "no better than the live one's is promoted" in found.guarantee[0]
        assert "version 3: click better" in {gate.name for gate in found.gates}
        assert "(version 3)" in as_markdown(found)
    finally:
        ctx.close()
