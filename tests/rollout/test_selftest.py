"""What a self-test says of the gates, by seeded simulation: it sees gates that raise too many alarms, and
passes those that keep their promise."""

from collections.abc import Iterator
from math import log
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest

from interlock.core.fault import Fault, Kind
from interlock.core.model import Signature, TensorSpec, Version
from interlock.core.policy import Policy
from interlock.core.state import PairCounts
from interlock.evidence import paired
from interlock.evidence.binomial import share
from interlock.evidence.paired import Pairs
from interlock.rollout import selftest
from interlock.rollout.gate import judge
from interlock.rollout.selftest import BLOCK_REQUESTS, Blocks, Trial, bound, report, since, why_not
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.tally import ArmTally, EpochTally
from tests.rollout.canaries import Canary, constant, decisions_only

pytestmark = pytest.mark.slow

POLICY = Policy(shadow=1.0, reverse=1.0, shielded=True, most_disagreement=0.2)
POLICY_OF_ANSWERS = Policy(shadow=0.0, reverse=0.0, shielded=False, most_disagreement=1.0)
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "INT64", (-1,)),))
VERSION = Version("iris", "3", "sha256:" + "0" * 64, "onnx", "model.onnx", SIGNATURE)
SCORES = msgspec.structs.replace(
    VERSION, signature=Signature(SIGNATURE.inputs, (TensorSpec("score", "FP32", (-1, 2)),))
)


def an_epoch(number: int, requests: int, bad: int, worse: int, weight: float = 0.5) -> EpochTally:
    """Both arms with the same counts, so that blocks are as long as twice the requests."""
    arm = ArmTally(requests=requests, bad=bad, sent=requests, timed=requests, slow=(bad,), compute_s=0.5)
    pairs = PairCounts(good=requests - worse, worse=worse)
    return EpochTally(number, weight, (), 0.0, arm, arm, pairs, PairCounts(good=requests))


# Blocks of evidence


def test_what_is_new_since_a_look_is_what_is_counted() -> None:
    first, grown = an_epoch(1, 100, 3, 2), an_epoch(1, 180, 4, 2)
    (found,) = since([grown], [first])
    assert (found.incumbent.requests, found.candidate.bad, found.candidate.slow) == (80, 1, (1,))
    assert (found.pairs.good, found.pairs.worse, found.copies.good) == (80, 0, 80)
    assert found.weight == 0.5 and found.incumbent.compute_s == 0.0
    assert since([grown, an_epoch(2, 5, 0, 0)], [grown])[1] == an_epoch(2, 5, 0, 0)


def test_each_block_begins_with_fresh_evidence_and_a_new_release_with_a_new_block() -> None:
    blocks = Blocks(POLICY)
    step = BLOCK_REQUESTS // 2
    for look in range(1, 9):  # 4 bad pairs a block: together they would raise an alarm, alone none does
        blocks.look([an_epoch(1, look * step, 0, look * 4)])
    assert (blocks.count, blocks.alarmed) == (8, 0)
    assert "paired errors" in selftest.alarms(judge([an_epoch(1, 8 * step, 0, 32)], POLICY))
    blocks.begin()
    blocks.look([an_epoch(1, step, 0, 30)])  # its counts begin at 0 again
    assert (blocks.count, blocks.alarmed, blocks.gates) == (9, 1, {"paired errors"})


def test_an_alarm_counts_though_it_was_over_at_the_end_of_the_block_and_though_the_release_ended() -> None:
    blocks = Blocks(POLICY)
    blocks.look([an_epoch(1, 20, 0, 20)])
    blocks.begin()
    assert (blocks.count, blocks.alarmed) == (1, 1)
    blocks.look([an_epoch(1, 20, 0, 0)])
    blocks.begin()  # not half of a block, and nothing in it
    assert (blocks.count, blocks.alarmed) == (1, 1)
    blocks.look([an_epoch(1, BLOCK_REQUESTS // 4, 0, 0)])
    blocks.begin()
    assert (blocks.count, blocks.alarmed) == (2, 1)


def null_blocks(runs: int, policy: Policy) -> Blocks:
    """Pairs of two versions that fail on 10 % of requests each, on their own: ten looks a block."""
    random = np.random.default_rng(1)
    blocks = Blocks(policy)
    counts = np.zeros(4, np.int64)  # good, worse, better, bad
    for _ in range(runs):
        for _ in range(10):
            counts += random.multinomial(BLOCK_REQUESTS // 10, [0.81, 0.09, 0.09, 0.01])
            total = int(counts.sum())
            arm = ArmTally(requests=total // 2, sent=total // 2, timed=total // 2)
            blocks.look([EpochTally(1, 0.0, (), 0.0, arm, arm, PairCounts(), PairCounts(*map(int, counts)))])
    return blocks


@pytest.mark.slow
def test_blocks_of_the_same_version_raise_no_more_alarms_than_alpha() -> None:
    policy = msgspec.structs.replace(POLICY, alpha=0.05, most_disagreement=1.0)
    with decisions_only():
        blocks = null_blocks(500, policy)
    assert blocks.count == 500
    assert share(blocks.alarmed, blocks.count).low <= policy.alpha
    assert report(VERSION, policy, 100.0, 1.0, [], blocks, {}).against == ()


@pytest.fixture
def z_tests() -> Iterator[None]:
    """Gates that forget that they look more than once: a z test at each look."""

    def log_e(pairs: Pairs, margin: float = 0.0, bets: object = None) -> float:
        differ = pairs.worse + pairs.better
        return 1e3 if differ and (pairs.worse - pairs.better) / differ**0.5 > 1.645 else 0.0

    with mock.patch.object(paired, "log_e_harm", log_e):
        yield


def test_gates_that_look_too_often_are_found_out(z_tests: None) -> None:
    policy = msgspec.structs.replace(POLICY, alpha=0.05, most_disagreement=1.0)
    with decisions_only():
        blocks = null_blocks(120, policy)
    found = report(VERSION, policy, 100.0, 1.0, [], blocks, {})
    assert found.blocks.low > policy.alpha
    assert "false alarms: " in found.against[0] and "blocks of the same version" in found.against[0]
    assert "paired errors" in found.block_gates


class Watched(Canary):
    """A simulated release, which is also cut into blocks."""

    blocks: Blocks

    def snapshot(self, *seen: Any) -> Snapshot:
        found = super().snapshot(*seen)
        if found.ramp is not None and found.ramp.epochs:
            self.blocks.look(found.ramp.epochs)
        return found


def released(runs: int, policy: Policy = POLICY, **how: Any) -> Blocks:
    """Simulated releases at 2 % bad answers, one after the other."""
    blocks = Blocks(policy)
    for run in range(runs):
        canary = Watched(constant(0.02), constant(0.02), policy=policy, **how)
        canary.blocks = blocks
        with decisions_only():
            canary.run(np.random.default_rng(run), 60.0)
        blocks.begin()
    return blocks


@pytest.mark.slow
def test_whole_releases_of_the_same_version_raise_no_more_alarms_than_alpha() -> None:
    blocks = released(4)
    assert blocks.count >= 80 and share(blocks.alarmed, blocks.count).low <= POLICY.alpha


@pytest.mark.slow
def test_whole_releases_of_a_slow_version_raise_alarms_of_latency() -> None:
    blocks = released(2, POLICY_OF_ANSWERS, slower=3.0)
    assert blocks.alarmed and any(gate.startswith("latency") for gate in blocks.gates)


# What is promised of detection


@pytest.mark.parametrize(("kind", "level"), [("fail", 0.05), ("flip", 0.4)])
def test_no_run_of_the_gates_is_below_the_bound_on_average_and_few_are_far_above(
    kind: Kind, level: float
) -> None:
    """The mean over seeded runs lies between the bound and twice it."""
    fault, random, took = Fault(kind, level), np.random.default_rng(2), []
    limit = None
    for _ in range(40):
        hits = 0
        for pairs in range(10, 3000, 10):
            hits += int(random.binomial(10, level))
            if kind == "fail":
                counts = PairCounts(good=pairs - hits, worse=hits)
            else:
                counts = PairCounts(good=pairs, agreed=pairs - hits, disagreed=hits)
            found = judge([EpochTally(1, 0.0, (), 0.0, ArmTally(), ArmTally(), PairCounts(), counts)], POLICY)
            alarm = (
                next(gate for gate in found.gates if selftest.alarms(found) == (gate.name,))
                if (found.rollback)
                else None
            )
            if alarm is not None:
                limit = alarm.log10_threshold * log(10.0)
                took.append(pairs)
                break
    assert len(took) == 40 and limit is not None
    least = bound(fault, POLICY, limit)
    assert least is not None and least < sum(took) / len(took) < 2 * least


def test_a_bound_falls_with_the_level_and_has_none_without_pairs() -> None:
    cases: list[tuple[Kind, float, float]] = [("fail", 0.01, 0.5), ("nan", 0.01, 0.5), ("flip", 0.3, 0.9)]
    for kind, low, high in cases:
        small, large = (bound(Fault(kind, level), POLICY, 7.0) for level in (low, high))
        assert small is not None and large is not None and small > large > 0
    assert bound(Fault("fail", 0.1), Policy(shadow=0.0, reverse=0.0), 7.0) is None
    assert bound(Fault("slow", 3.0), Policy(shadow=0.0, reverse=0.0), 7.0) == 10


@pytest.mark.parametrize(
    ("fault", "version", "policy", "why"),
    [
        (Fault("fail", 0.1), VERSION, POLICY, ""),
        (Fault("slow", 3.0), VERSION, POLICY, ""),
        (Fault("flip", 0.4), VERSION, POLICY, ""),
        (Fault("nan", 0.1), SCORES, POLICY, ""),
        (Fault("nan", 0.1), VERSION, POLICY, "no output of fractions"),
        (Fault("flip", 0.1), VERSION, POLICY, "lets 20% of the answers differ"),
        (Fault("flip", 0.4), SCORES, msgspec.structs.replace(POLICY, most_disagreement=1.0), "no limit"),
        (Fault("slow", 3.0), VERSION, msgspec.structs.replace(POLICY, slower=4.0), "allows 4 times"),
        (Fault("fail", 0.1), VERSION, msgspec.structs.replace(POLICY, guardrails=("outputs",)), "errors"),
        (Fault("nan", 0.1), SCORES, Policy(shadow=0.0, reverse=0.0), "no request is run by both"),
    ],
)
def test_what_the_gates_are_not_to_find_is_not_tried(
    fault: Fault, version: Version, policy: Policy, why: str
) -> None:
    found = why_not(fault, version, policy)
    assert why in found and bool(found) == bool(why)


# The sum


def a_trial(outcome: selftest.Outcome, fault: Fault | None = None) -> Trial:
    return Trial(fault, outcome, (), "why", 100, 200, 3.0, 300, 0)


def test_what_held_and_what_did_not() -> None:
    blocks = Blocks(POLICY)
    well = [a_trial("promoted"), a_trial("held"), a_trial("rolled back", Fault("fail", 0.1))]
    found = report(VERSION, POLICY, 100.0, 1.0, well, blocks, {})
    assert found.against == () and (found.alarms.hits, found.alarms.of) == (0, 2)
    assert (found.blocks.low, found.blocks.high) == (0.0, 1.0), "nothing is known without a block"
    ill = [a_trial("promoted", Fault("nan", 0.1)), a_trial("held", Fault("slow", 3.0))]
    assert report(VERSION, POLICY, 100.0, 1.0, [*well, *ill], blocks, {}).against == (
        "not caught: nan on 10 % ended promoted: why",
        "not caught: slow, 3 times ended held: why",
    )


def test_one_false_alarm_in_three_proves_nothing_and_two_do() -> None:
    """At alpha 1 %, one of three comes by chance in 3 % of self-tests; two in 3 of 10,000."""
    blocks = Blocks(POLICY)
    some = [a_trial("rolled back"), a_trial("promoted"), a_trial("promoted")]
    assert report(VERSION, POLICY, 100.0, 1.0, some, blocks, {}).against == ()
    many = [a_trial("rolled back"), a_trial("rolled back"), a_trial("promoted")]
    (line,) = report(VERSION, POLICY, 100.0, 1.0, many, blocks, {}).against
    assert line.startswith("false alarms: 2 of 3 releases of the same version, so at least ")
