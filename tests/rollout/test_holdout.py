"""Verdicts on a holdout: their error at the margin, multiplicity, slices, the rows that would do."""

from math import sqrt

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.rollout.checks import Check, worst
from interlock.rollout.holdout import Losses, Slice, Snapshot, judge, slices_of, too_small, worst_slice

ALPHA = 0.05


def wrong(rows: int, share: float, seed: int) -> Array:
    return (np.random.default_rng(seed).random(rows) < share).astype(float)


def accuracy(incumbent: Array, candidate: Array, margin: float = 0.01) -> Losses:
    return Losses("accuracy", margin, 1.0, incumbent, candidate)


def test_the_same_answers_pass_worse_ones_are_worse_and_few_are_undecided() -> None:
    right = np.zeros(1000)
    assert judge(Snapshot((accuracy(right, right),)))[0].outcome == "pass"
    assert judge(Snapshot((accuracy(right, wrong(1000, 0.1, 0)),)))[0].outcome == "worse"
    few = judge(Snapshot((accuracy(right[:50], right[:50]),)))[0]
    assert few.outcome == "undecided" and "about" in few.words
    needed = few.facts["rows_needed"]
    again = judge(Snapshot((accuracy(np.zeros(2 * needed), np.zeros(2 * needed)),)))[0]
    assert again.outcome == "pass" and needed > 50


def test_better_answers_pass() -> None:
    found = judge(Snapshot((accuracy(wrong(1000, 0.1, 1), np.zeros(1000)),)))[0]
    assert found.outcome == "pass" and found.facts["excess"] < -0.05
    assert found.facts["candidate"] == 1.0 and found.facts["incumbent"] == pytest.approx(0.9, abs=0.03)


def squares(random: np.random.Generator, rows: int, spread: float) -> Array:
    return np.minimum(random.standard_t(3, rows) ** 2 * spread**2, 16.0)


@pytest.mark.slow
def test_at_the_margin_of_rmse_either_verdict_is_wrong_at_most_alpha_of_the_time() -> None:
    """Heavy tails, cut at the cap: the true RMSEs are those of the cut errors."""
    random, replications = np.random.default_rng(2), 1000
    whole = [squares(random, 200_000, spread) for spread in (0.5, 0.6)]
    margin = sqrt(whole[1].mean()) - sqrt(whole[0].mean())
    outcomes = []
    for _ in range(replications):
        one, two = (random.choice(each, 300) for each in whole)
        outcomes.append(judge(Snapshot((Losses("rmse", margin, 16.0, one, two),)))[0].outcome)
    most = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / replications)
    assert outcomes.count("pass") / replications <= most
    assert outcomes.count("worse") / replications <= most


def test_rmse_that_is_worse_or_alike_is_found() -> None:
    random = np.random.default_rng(3)
    one = np.minimum(random.normal(0, 1, 4000) ** 2, 16.0)
    assert judge(Snapshot((Losses("rmse", 0.05, 16.0, one, one),)))[0].outcome == "pass"
    twice = np.minimum(4 * one, 16.0)
    found = judge(Snapshot((Losses("rmse", 0.05, 16.0, one, twice),)))[0]
    assert found.outcome == "worse" and found.facts["least"] < found.facts["excess"] < found.facts["greatest"]


@pytest.mark.slow
def test_many_slices_of_a_version_at_the_margin_are_called_worse_at_most_alpha_of_the_time() -> None:
    """Twenty slices, each at the margin: without the correction, two of three would be called worse."""
    random, replications, called = np.random.default_rng(4), 150, 0
    rows = np.arange(2000)
    slices = tuple(Slice("g", str(k), np.flatnonzero(rows % 20 == k)) for k in range(20))
    for _ in range(replications):
        excess = 0.1 + 0.05 * random.standard_t(4, 2000)
        one = np.full(2000, 0.3)
        two = one + excess.clip(-0.1, 0.3)
        found = judge(Snapshot((Losses("mae", 0.1, 1.0, one, two),), slices, ALPHA, 50))
        called += worst(found) == "worse"
        assert len(found) == 21
    assert called / replications <= ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / replications)


def test_a_slice_that_is_worse_is_found_and_named() -> None:
    candidate = np.zeros(3000)
    candidate[:500] = wrong(500, 0.3, 5)
    slices = slices_of("region", np.array([b"north"] * 500 + [b"south"] * 2500, object))
    found = judge(Snapshot((accuracy(np.zeros(3000), candidate, 0.1),), slices))
    assert [check.outcome for check in found] == ["pass", "pass", "worse"]
    named = worst_slice(found)
    assert named is not None and named.name == "accuracy where region = north"


def test_small_slices_are_not_judged_and_a_factor_widens_the_margin_of_the_others() -> None:
    losses = accuracy(np.zeros(500), np.zeros(500), 0.02)
    slices = slices_of("g", np.array([b"a"] * 450 + [b"b"] * 50, object))
    snapshot = Snapshot((losses,), slices, least_rows=60, slice_factor=3.0)
    found = judge(snapshot)
    assert [check.facts["margin"] for check in found] == pytest.approx([0.02, 0.06])
    assert [one.label for one in too_small(snapshot)] == ["b"]


def test_values_are_slices_and_numbers_are_cut_at_quantiles() -> None:
    numbers = np.concatenate([np.arange(98.0), [np.nan, np.nan]])
    found = slices_of("age", numbers, bins=4)
    assert [len(one.rows) for one in found[:-1]] == pytest.approx([25, 24, 24, 25], abs=1)
    assert found[-1].label == "missing" and found[-1].rows.tolist() == [98, 99]
    assert sorted(np.concatenate([one.rows for one in found]).tolist()) == list(range(100))
    assert [one.label for one in slices_of("n", np.array([2, 1, 2]))] == ["2", "1"]
    many = slices_of("word", np.array([str(k).encode() for k in range(50)], object), most_values=5)
    assert len(many) == 6 and len(many[-1].rows) == 45


def test_what_cannot_be_judged_is_refused() -> None:
    rows = np.zeros(10)
    with pytest.raises(ConfigError, match="half of what a row can cost"):
        Snapshot((accuracy(rows, rows, 0.6),))
    with pytest.raises(ConfigError, match="more than 0"):
        Snapshot((accuracy(rows, rows, 0.0),))
    with pytest.raises(ConfigError, match="alpha"):
        Snapshot((), alpha=0.5)


def test_nothing_judged_is_undecided() -> None:
    assert worst(()) == "undecided"
    assert worst((Check("a", "pass", ""), Check("b", "undecided", ""))) == "undecided"
