"""Weighted differences: a martingale over requests, whatever drifts while the weight grows."""

from collections.abc import Sequence
from itertools import product
from math import exp, isfinite, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.difference import excess_interval, log_e_harm, log_e_safe
from interlock.evidence.epochs import Epoch

weights = st.floats(0.01, 0.99)
rates = st.floats(0.0, 0.5)


def mean_of_e(
    requests: Sequence[tuple[float, float, float]], margin: float, harm: bool, one_epoch: bool
) -> float:
    """Over all that may happen to requests with (weight, p_a, p_b), in one epoch or in one each."""
    total = 0.0
    for outcome in product(product((0, 1), repeat=2), repeat=len(requests)):
        chance, asked, bad = 1.0, [], []
        for (weight, p_a, p_b), (arm, failed) in zip(requests, outcome, strict=True):
            p = p_b if arm else p_a
            chance *= (weight if arm else 1 - weight) * (p if failed else 1 - p)
            asked.append(Epoch(weight, 1 - arm, arm))
            bad.append(Epoch(weight, failed * (1 - arm), failed * arm))
        if one_epoch:
            asked, bad = [_sum(asked)], [_sum(bad)]
        total += chance * exp((log_e_harm if harm else log_e_safe)(asked, bad, margin))
    return total


def _sum(epochs: list[Epoch]) -> Epoch:
    return Epoch(epochs[0].weight, sum(e.incumbent for e in epochs), sum(e.candidate for e in epochs))


@given(
    requests=st.lists(st.tuples(weights, rates), min_size=1, max_size=4),
    excess=st.floats(0, 0.5),
    harm=st.booleans(),
)
def test_its_mean_is_one_at_the_margin_whatever_the_rates_and_weights(
    requests: list[tuple[float, float]], excess: float, harm: bool
) -> None:
    edge = [(weight, p, p + excess) for weight, p in requests]
    assert mean_of_e(edge, excess, harm, one_epoch=False) == pytest.approx(1.0, rel=1e-9)


@given(weight=weights, drift=st.lists(st.tuples(rates, rates), min_size=1, max_size=4))
def test_within_an_epoch_the_average_excess_decides(weight: float, drift: list[tuple[float, float]]) -> None:
    requests = [(weight, p_a, p_b) for p_a, p_b in drift]
    average = sum(p_b - p_a for p_a, p_b in drift) / len(drift)
    assert mean_of_e(requests, average, harm=True, one_epoch=True) <= 1 + 1e-9
    assert mean_of_e(requests, average, harm=False, one_epoch=True) <= 1 + 1e-9


def test_the_test_of_the_mean_bites() -> None:
    assert mean_of_e([(0.3, 0.1, 0.4)] * 4, 0.0, harm=True, one_epoch=True) > 1.05
    assert mean_of_e([(0.3, 0.1, 0.1)] * 4, 0.3, harm=False, one_epoch=True) > 1.02


@given(
    weight=st.sampled_from([0.0, 1e-12, 0.05, 0.5, 0.95, 1 - 1e-12, 1.0]),
    asked=st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    parts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    margin=st.floats(-0.99, 0.99),
)
def test_extremes_stay_finite(
    weight: float, asked: tuple[int, int], parts: tuple[float, float], margin: float
) -> None:
    requests = [Epoch(weight, *asked)]
    bad = [Epoch(weight, int(asked[0] * parts[0]), int(asked[1] * parts[1]))]
    assert isfinite(log_e_harm(requests, bad, margin)) and isfinite(log_e_safe(requests, bad, margin))
    if weight in (0.0, 1.0):
        assert abs(log_e_safe(requests, bad, margin)) < 1e-12


@given(weight=weights, a=st.integers(0, 10**4), b=st.integers(0, 10**4), margin=st.floats(-0.9, 0.9))
def test_an_epoch_cut_in_two_says_the_same(weight: float, a: int, b: int, margin: float) -> None:
    requests, bad = Epoch(weight, 3 * a, 3 * b), Epoch(weight, a, b)
    thirds = [Epoch(weight, a, b), Epoch(weight, 2 * a, 2 * b)], [Epoch(weight, a, 0), Epoch(weight, 0, b)]
    for log_e in (log_e_harm, log_e_safe):
        assert log_e(*thirds, margin) == pytest.approx(log_e([requests], [bad], margin), rel=1e-9, abs=1e-6)
    one_more = [Epoch(weight, a, b + 1)]
    assert log_e_harm([requests], one_more, margin) >= log_e_harm([requests], [bad], margin) - 1e-6
    assert log_e_safe([requests], one_more, margin) <= log_e_safe([requests], [bad], margin) + 1e-6


@pytest.mark.parametrize("weight", [0.01, 0.05, 0.5])
def test_clean_traffic_promotes(weight: float) -> None:
    def promoted(candidate: int) -> bool:
        asked = [Epoch(weight, candidate * (1 - weight) / weight, candidate)]
        return log_e_safe(asked, [Epoch(weight, 0, 0)], 0.005) >= log(100)

    least = next(n for n in range(1, 10_000) if promoted(n))
    assert 900 <= least <= 1200


def test_an_interval_holds_the_truth_and_narrows() -> None:
    widths = []
    for n in (1000, 10_000, 100_000):
        found = excess_interval([Epoch(0.2, 4 * n, n)], [Epoch(0.2, 0.08 * n, 0.03 * n)], 0.05)
        assert -1 < found.least < 0.01 < found.greatest < 1
        widths.append(found.greatest - found.least)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.01
    nothing = excess_interval([], [], 0.05)
    assert (nothing.least, nothing.greatest) == (-1, 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="margin of a difference of rates"):
        log_e_safe([], [], 1.0)
    with pytest.raises(ConfigError, match="want the same"):
        log_e_safe([Epoch(0.1, 1, 1)], [], 0.1)
