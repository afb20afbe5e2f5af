"""The gates of pairs by hand-made counts: what copies may say, and what only answers may."""

from typing import Any

import pytest

from interlock.core.policy import Policy
from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict
from interlock.rollout.gate import judge
from interlock.rollout.judgement import Gate, Judgement, Kind
from interlock.rollout.paired_gates import alarms, number_of_alarms
from interlock.rollout.tally import ArmTally, EpochTally

PAIRED = Policy(shadow=1.0, reverse=1.0, shielded=True, most_disagreement=0.2)
CLEAN = PairCounts(good=4000, agreed=4000)


def epoch(
    weight: float, pairs: PairCounts, incumbent: int = 4000, candidate: int = 0, bad: int = 0
) -> EpochTally:
    mine, theirs = ArmTally(candidate, bad, candidate), ArmTally(incumbent, 0, incumbent)
    copies, answers = (pairs, PairCounts()) if weight == 0.0 else (PairCounts(), pairs)
    return EpochTally(1 if weight == 0.0 else 2, weight, (), 0.0, theirs, mine, answers, copies)


def gate(found: Judgement, name: str) -> Gate:
    return next(one for one in found.gates if one.name == name)


@pytest.mark.parametrize("unit", ["none", "header", "json:user"])
def test_copies_alone_prove_nothing_of_answers(unit: str) -> None:
    """A queue that is full, or answers that cannot be encoded, do not show in copies: however many went well,
    what lets a canary through is counted on what it answered."""
    policy = Policy(shadow=1.0, reverse=1.0, shielded=True, unit=unit)
    found = judge([epoch(0.0, CLEAN)], policy)
    assert gate(found, "errors within margin").verdict is Verdict.UNDECIDED and found.excess_most == 1.0
    served = epoch(0.5, PairCounts(good=95, worse=5, agreed=95), 100, 100, 5)
    found = judge([epoch(0.0, CLEAN), served], policy)
    assert gate(found, "errors within margin").log10_e < 0.0, "five of a hundred are not within half a point"
    assert found.excess_most > 0.05
    clean = epoch(0.5, PairCounts(good=1500, agreed=1500), 1500, 1500)
    assert gate(judge([clean], policy), "errors within margin").verdict is Verdict.PASS


def test_a_shadow_is_judged_by_its_copies() -> None:
    found = judge([epoch(0.0, PairCounts(good=4000, agreed=4000, faster=40))], PAIRED, answers=False)
    assert found.proved and not found.rollback and not found.hold
    slow = judge([epoch(0.0, PairCounts(good=400, agreed=400, slower=60))], PAIRED, answers=False)
    assert not slow.proved and slow.hold.startswith("compute: 60 batches took more than 1.2 times")


def test_of_two_kinds_of_evidence_half_is_bet_on_each() -> None:
    """Copies that find no place must not stall a version that counts by arm would promote."""
    few = epoch(0.5, PairCounts(good=3, agreed=3, dropped=3000), 3000, 3000)
    assert gate(judge([few], PAIRED), "errors within margin").verdict is Verdict.PASS
    alone = judge([few], Policy())
    found = judge([few], PAIRED)
    cost = gate(alone, "errors within margin").log10_e - gate(found, "errors within margin").log10_e
    assert cost == pytest.approx(0.301, abs=0.001)


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        (PairCounts(good=200, worse=15), "paired errors"),
        (PairCounts(good=300, agreed=300, unsound_worse=15), "unsound outputs"),
        (PairCounts(good=100, agreed=40, disagreed=60), "disagreement"),
    ],
)
def test_what_copies_show_rolls_back_before_anybody_is_answered(pairs: PairCounts, name: str) -> None:
    found = judge([epoch(0.0, pairs)], PAIRED)
    assert found.rollback.startswith(name) and found.harm == 0.0
    assert judge([epoch(0.0, pairs)], Policy()).rollback == "", "a policy without pairs has no such gate"


def test_a_slower_batch_more_often_than_not_is_no_alarm_and_nearly_always_is() -> None:
    often = judge([epoch(0.5, PairCounts(good=900, agreed=900, slower=540, faster=360), 900, 900)], PAIRED)
    assert often.rollback == "", "whose run comes first may make so much of a difference"
    always = judge([epoch(0.5, PairCounts(good=30, agreed=30, slower=30), 30, 30)], PAIRED)
    assert always.rollback.startswith("compute: 30 batches")
    copies = judge([epoch(0.0, PairCounts(good=30, agreed=30, slower=30))], PAIRED)
    assert copies.rollback == "", "copies wait for clients: that they take long is not theirs to answer for"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reverse": 0.0},
        {"most_disagreement": 1.0},
        {"guardrails": ("errors",)},
        {"guardrails": ("outputs", "latency")},
        {"shadow": 0.0, "reverse": 0.0},
    ],
    ids=str,
)
def test_the_union_bound_covers_every_alarm_of_a_policy(changes: dict[str, Any]) -> None:
    policy = Policy(**{"shadow": 1.0, "reverse": 1.0, "most_disagreement": 0.2, **changes})
    assert len(alarms([epoch(0.5, CLEAN)], policy, 1.0)) == number_of_alarms(policy)


def test_where_units_stick_counts_by_version_raise_no_alarm_about_errors() -> None:
    sticky = Policy(shadow=1.0, reverse=1.0, unit="header")
    found = judge([epoch(0.5, PairCounts(good=300), 300, 300, 100)], sticky)
    assert "errors" not in [one.name for one in found.gates if one.kind is Kind.ALARM] and not found.rollback
