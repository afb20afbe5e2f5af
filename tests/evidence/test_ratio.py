"""Sample ratios: a martingale under the route's own weights, in both directions, over epochs."""

from itertools import product
from math import exp, isfinite, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.evidence.epochs import Epoch
from interlock.evidence.ratio import log_e_mismatch

weights = st.floats(0.001, 0.999)


def mean_of_e(told: list[float], actual: list[float]) -> float:
    return sum(
        prod(p if hit else 1 - p for hit, p in zip(hits, actual, strict=True))
        * exp(log_e_mismatch([Epoch(w, 1 - hit, hit) for hit, w in zip(hits, told, strict=True)]))
        for hits in product((0, 1), repeat=len(told))
    )


@given(told=st.lists(weights, min_size=1, max_size=7))
def test_its_mean_is_one_when_each_arm_gets_its_share(told: list[float]) -> None:
    assert mean_of_e(told, told) == pytest.approx(1.0, rel=1e-9)


def test_the_test_of_the_mean_bites() -> None:
    assert mean_of_e([0.5] * 6, [0.9] * 6) > 1.1
    assert mean_of_e([0.5] * 6, [0.1] * 6) > 1.1


@given(
    weight=st.sampled_from([0.0, 1e-12, 0.5, 1 - 1e-12, 1.0]),
    a=st.integers(0, 10**9),
    b=st.integers(0, 10**9),
)
def test_extremes_stay_finite(weight: float, a: int, b: int) -> None:
    assert isfinite(log_e_mismatch([Epoch(weight, a, b)]))


@given(weight=weights, a=st.integers(0, 10**6), b=st.integers(0, 10**6))
def test_an_epoch_cut_in_two_says_the_same(weight: float, a: int, b: int) -> None:
    whole = log_e_mismatch([Epoch(weight, a, b)])
    assert log_e_mismatch([Epoch(weight, a, 0), Epoch(weight, 0, b)]) == pytest.approx(
        whole, rel=1e-9, abs=1e-6
    )


def test_a_mismatch_in_either_direction_shows() -> None:
    assert log_e_mismatch([Epoch(0.1, 9300, 700)]) > 10
    assert log_e_mismatch([Epoch(0.1, 8700, 1300)]) > 10
    assert log_e_mismatch([Epoch(0.1, 9000, 1000), Epoch(0.5, 1000, 1000)]) < 0
