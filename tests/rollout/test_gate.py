"""The gates by hand-made counts: who stops a candidate, who lets it through, and what they tell people."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.policy import Policy
from interlock.core.state import BOUNDS_S, BUCKETS, ArmCounts, ArmKey, Histogram
from interlock.core.verdict import Verdict
from interlock.evidence.exceedance import Cut
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.gate import Load, judge, projection
from interlock.rollout.judgement import Judgement, Kind, as_findings
from interlock.rollout.tally import OBJECTIVE, ArmTally, EpochTally, arm_tally, next_cuts, tally

CUT = Cut(0.95, BOUNDS_S[40], BOUNDS_S[41])


def arm(requests: int, bad: int = 0, slow: int = 0, **more: float) -> ArmTally:
    return msgspec.convert(
        {"requests": requests, "bad": bad, "sent": requests, "timed": requests, "slow": [slow], **more},
        ArmTally,
    )


def epoch(weight: float, incumbent: ArmTally, candidate: ArmTally, number: int = 1) -> EpochTally:
    return EpochTally(number, weight, (CUT,), 100.0, incumbent, candidate)


def gate(judgement: Judgement, name: str) -> Verdict:
    return next(one.verdict for one in judgement.gates if one.name == name)


def test_a_clean_candidate_is_proved_and_one_with_no_answers_is_not() -> None:
    clean = judge([epoch(0.5, arm(3000, 0, 150), arm(3000, 0, 20))], Policy())
    assert clean.proved and not clean.rollback and clean.requests_needed == 0.0
    nothing = judge([epoch(0.5, arm(0), arm(0))], Policy())
    assert not nothing.proved and nothing.verdict is Verdict.UNDECIDED


def test_bad_answers_of_the_candidate_roll_it_back_and_those_of_the_incumbent_do_not() -> None:
    bad, good = arm(1000, 60), arm(1000, 20)
    assert judge([epoch(0.5, good, bad)], Policy()).rollback.startswith(
        "errors: bad answers: candidate 60 of"
    )
    assert judge([epoch(0.5, bad, good)], Policy()).rollback == ""


def test_slow_answers_roll_back_unless_latency_is_no_guardrail() -> None:
    epochs = [epoch(0.5, arm(1000, 0, 50), arm(1000, 0, 200))]
    assert judge(epochs, Policy()).rollback.startswith("latency p95: answers above")
    assert judge(epochs, Policy(guardrails=("errors",))).rollback == ""
    assert not judge(epochs, Policy(guardrails=("errors",))).proved, "promotion wants latency all the same"


def test_a_good_error_rate_alone_does_not_promote() -> None:
    judgement = judge([epoch(0.5, arm(3000, 0, 150), arm(3000, 0, 165))], Policy())
    assert gate(judgement, "errors within margin") is Verdict.PASS
    assert gate(judgement, "latency within margin") is Verdict.UNDECIDED and not judgement.proved


def test_without_cuts_nothing_is_proved_of_latency() -> None:
    bare = EpochTally(1, 0.5, (), 0.0, ArmTally(9000, 0, 9000, 9000), ArmTally(9000, 0, 9000, 9000))
    judgement = judge([bare], Policy())
    assert not judgement.proved and judgement.requests_needed is None


@pytest.mark.parametrize("unit", ["header", "json:user"])
def test_counts_of_requests_promote_nothing_where_units_stick(unit: str) -> None:
    epochs = [epoch(0.5, arm(30_000, 0, 1500), arm(30_000, 0, 20))]
    sticky = judge(epochs, Policy(unit=unit))
    assert judge(epochs, Policy()).proved and not sticky.proved
    assert "promote by hand" in sticky.gates[-1].message
    assert not any(one.name == "sample ratio" for one in sticky.gates)


def test_a_wrong_ratio_holds_until_a_person_has_looked() -> None:
    epochs = [epoch(0.1, arm(9500), arm(500)), epoch(0.1, arm(900), arm(100), number=2)]
    assert judge(epochs, Policy()).hold.startswith(
        "sample ratio: the candidate was sent 600 requests, its weight"
    )
    assert judge(epochs, Policy(), ratio_since=1).hold == ""
    luck = [epoch(0.01, arm(1664), arm(3)), epoch(0.02, arm(62), arm(1), number=2)]
    assert judge(luck, Policy()).hold == "" and judge(luck, Policy(alpha=0.1)).hold


def test_the_forecast_is_what_it_then_takes() -> None:
    def at(requests: int) -> Judgement:
        return judge(
            [epoch(0.5, arm(requests, 0, requests // 20), arm(requests, 0, requests // 200))], Policy()
        )

    needed = at(200).requests_needed
    assert needed is not None and needed > 0
    later = 200 + round(needed / 2)
    assert not at(int(later * 0.97)).proved and at(int(later * 1.03)).proved


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=4),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_more_bad_answers_never_help_a_candidate(
    sizes: list[tuple[int, int]], incumbent_bad: int, candidate_bad: int
) -> None:
    def with_bad(bad: int) -> Judgement:
        return judge(
            [
                epoch(0.2, arm(a + 40, incumbent_bad, 2), arm(b + 40, bad, 2), number)
                for number, (a, b) in enumerate(sizes, 1)
            ],
            Policy(),
        )

    few, many = with_bad(candidate_bad), with_bad(candidate_bad + 5)
    assert many.excess_most >= few.excess_most - 1e-9
    errors = [next(g.log10_e for g in judged.gates if g.name == "errors") for judged in (few, many)]
    assert errors[0] <= errors[1]
    assert few.harm <= many.harm
    assert not (many.proved and not few.proved)


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.001, 0.9))
def test_a_judgement_is_plain_json_for_any_counts(a: int, b: int, weight: float) -> None:
    judgement = judge([epoch(weight, arm(a, a, a), arm(b, b // 2, b))], Policy(objective_s=0.1), Load(50.0))
    assert msgspec.json.decode(msgspec.json.encode(judgement), type=Judgement) == judgement
    for one in as_findings(judgement, "m", "2", 1.0):
        assert one.message and one.evidence.keys() == {"log10_e", "log10_threshold"}


def test_a_candidate_that_would_fill_the_node_at_full_weight_waits_for_a_person() -> None:
    mine = arm(1000, 0, 0, rows=1000, batches=1000, compute_s=5.0)
    theirs = arm(9000, 0, 450, rows=9000, batches=1000, compute_s=4.5)
    found = judge([epoch(0.1, theirs, mine)], Policy(), Load(200.0, 1))
    assert found.hold.startswith("utilisation: 5e+03 us of compute a row (incumbent 500), so 100% of 1")
    # Its batches are small because its share is: nine rows together cost it little more than one.
    profile = {1: 0.005, 9: 0.006}
    row_s, share = projection(theirs, mine, Load(200.0, 1, profile))
    assert row_s == pytest.approx(0.006 / 9) and share == pytest.approx(200 * 0.006 / 9)
    assert judge([epoch(0.1, theirs, mine)], Policy(), Load(200.0, 1, profile)).hold == ""
    assert judge([epoch(0.1, theirs, mine)], Policy(guardrails=()), Load(200.0, 1)).hold == ""


def test_what_is_lost_refused_or_late_counts_and_what_the_client_did_wrong_does_not() -> None:
    counts = ArmCounts(
        dispatched=100, ok=70, invalid=10, failed=1, timed_out=2, cancelled=5, lost=4, refused=8
    )
    found = arm_tally(counts, [])
    assert (found.requests, found.bad, found.sent) == (70 + 5 + 15, 15, 108)


def histogram(index: int, count: int) -> Histogram:
    return Histogram(tuple(count if k == index else 0 for k in range(BUCKETS)), 1.0)


LIVE = ReleaseRow(4, "m", "1", "now", ReleaseState.DONE, "", None, 0, 0.0, 0.0, 0.0)
ROW = ReleaseRow(9, "m", "2", "canary", ReleaseState.RAMPING, "", "1", 2, 0.0, 0.0, None)


def test_each_arm_is_counted_under_its_own_epoch_and_cut() -> None:
    epochs = (RampEpoch(1, 0.1, (), 1.0), RampEpoch(2, 0.2, (CUT,), 2.0))
    counts = {
        ArmKey("m", "1", 9, 2, 0): ArmCounts(dispatched=5, ok=5, total=histogram(41, 5)),
        ArmKey("m", "2", 9, 2, 1): ArmCounts(dispatched=3, ok=3, total=histogram(41, 3)),
        ArmKey("m", "2", 9, 2, 255): ArmCounts(dispatched=99, ok=99),
        ArmKey("m", "2", 9, 1, 1): ArmCounts(dispatched=2, failed=2, total=histogram(90, 2)),
        ArmKey("other", "2", 9, 2, 1): ArmCounts(dispatched=99, ok=99),
    }
    first, second = tally(ROW, "1", epochs, counts)
    assert (first.candidate.bad, first.candidate.slow, first.incumbent.requests) == (2, (), 0)
    assert (second.incumbent.slow, second.candidate.slow) == ((5,), (0,))
    assert (second.incumbent.requests, second.candidate.requests) == (5, 3)


def test_cuts_come_from_what_the_incumbent_did_and_from_nobody_else() -> None:
    counts = {
        ArmKey("m", "1", 4, 0, 0): ArmCounts(total=histogram(40, 1000)),
        ArmKey("m", "1", 9, 1, 0): ArmCounts(total=histogram(40, 1000)),
        ArmKey("m", "2", 9, 1, 1): ArmCounts(total=histogram(70, 9000)),
        ArmKey("m", "1", 3, 0, 0): ArmCounts(total=histogram(70, 9000)),
    }
    (cut,) = next_cuts(Policy(), LIVE, ROW, counts)
    assert (cut.incumbent_s, cut.candidate_s) == (BOUNDS_S[40], BOUNDS_S[41])
    strict, objective = next_cuts(Policy(slower=1.0, objective_s=0.05), LIVE, ROW, counts)
    assert strict.candidate_s == strict.incumbent_s
    assert objective.level == OBJECTIVE and 0.05 <= objective.incumbent_s == objective.candidate_s < 0.06
    assert next_cuts(Policy(), LIVE, ROW, {}) == ()


def test_the_objective_is_what_must_be_proved_where_there_is_one() -> None:
    both = (CUT, Cut(OBJECTIVE, BOUNDS_S[50], BOUNDS_S[50]))
    sides = [ArmTally(3000, 0, 3000, 3000, (slow, 0)) for slow in (150, 165)]
    epoch = EpochTally(1, 0.5, both, 0.0, incumbent=sides[0], candidate=sides[1])
    judgement = judge([epoch], Policy(objective_s=0.05))
    assert judgement.proved
    assert [g.name for g in judgement.gates if g.kind is Kind.ALARM] == [
        "errors",
        "latency p95",
        "latency objective",
    ]
