"""Means of bounded values: mean of E at most 1 by enumeration, from sums that merge."""

from collections.abc import Sequence
from itertools import product
from math import exp, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.bounded import MeanEpoch, Moments, log_e_harm, log_e_safe

weights = st.floats(0.01, 0.99)
VALUES = (0.0, 0.3, 1.0)


def moments(values: Sequence[float]) -> Moments:
    return Moments(len(values), sum(values), sum(v * v for v in values))


def mean_of_e(
    weight: float,
    centre: float,
    arms: Sequence[tuple[Sequence[float], Sequence[float]]],
    margin: float,
    harm: bool,
) -> float:
    """Over all that may happen to requests with ([chances of VALUES if incumbent], [... if candidate])."""
    total = 0.0
    for outcome in product(product((0, 1), range(len(VALUES))), repeat=len(arms)):
        chance = 1.0
        seen: tuple[list[float], list[float]] = ([], [])
        for chances, (arm, value) in zip(arms, outcome, strict=True):
            chance *= (weight if arm else 1 - weight) * chances[arm][value]
            seen[arm].append(VALUES[value])
        epoch = MeanEpoch(weight, centre, moments(seen[0]), moments(seen[1]))
        total += chance * exp((log_e_harm if harm else log_e_safe)([epoch], margin))
    return total


chances = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda xs: [x / sum(xs) for x in xs])


@given(
    weight=weights, centre=st.floats(0, 1), arms=st.lists(st.tuples(chances, chances), min_size=1, max_size=3)
)
def test_its_mean_is_at_most_one_where_the_average_excess_keeps_the_margin(
    weight: float, centre: float, arms: list[tuple[list[float], list[float]]]
) -> None:
    def mean(shares: list[float]) -> float:
        return sum(share * value for share, value in zip(shares, VALUES, strict=True))

    average = sum(mean(b) - mean(a) for a, b in arms) / len(arms)
    assert mean_of_e(weight, centre, arms, average, harm=True) <= 1 + 1e-9
    assert mean_of_e(weight, centre, arms, average, harm=False) <= 1 + 1e-9


def test_the_test_of_the_mean_bites() -> None:
    arms = [([0.9, 0.05, 0.05], [0.05, 0.05, 0.9])] * 3
    assert mean_of_e(0.5, 0.1, arms, 0.0, harm=True) > 1.05
    assert mean_of_e(0.5, 0.5, [(b, a) for a, b in arms], 0.5, harm=False) > 1.05


values = st.lists(st.floats(0, 1), max_size=30)


@given(a=values, b=values, weight=weights, centre=st.floats(0, 1), margin=st.floats(-0.9, 0.9))
def test_sums_merge(a: list[float], b: list[float], weight: float, centre: float, margin: float) -> None:
    whole, parts = moments([*a, *b]), moments(a).merge(moments(b))
    assert parts.total == pytest.approx(whole.total) and parts.count == whole.count
    one = log_e_harm([MeanEpoch(weight, centre, whole, moments(b))], margin)
    split = [
        MeanEpoch(weight, centre, moments(a), moments(b)),
        MeanEpoch(weight, centre, moments(b), Moments()),
    ]
    assert log_e_harm(split, margin) == pytest.approx(one, rel=1e-6, abs=1e-6)
    # Turning the values round and the direction with them changes nothing.
    turned = MeanEpoch(weight, 1 - centre, moments([1 - x for x in a]), moments([1 - x for x in b]))
    straight = MeanEpoch(weight, centre, moments(a), moments(b))
    assert log_e_safe([turned], -margin) == pytest.approx(log_e_harm([straight], margin), rel=1e-6, abs=1e-6)


@given(weight=st.sampled_from([0.0, 1e-9, 0.5, 1.0]), n=st.integers(0, 10**9), mean=st.floats(0, 1))
def test_extremes_stay_finite(weight: float, n: int, mean: float) -> None:
    same = Moments(n, n * mean, n * mean * mean)
    assert isfinite(log_e_harm([MeanEpoch(weight, mean, same, same)], 0.01))


def test_what_is_not_in_bounds_is_refused() -> None:
    for wrong in ((1, 2, 2), (2, 1, 0.1), (1, 0.5, 0.6), (1, -0.5, 0.25), (float("inf"), 0, 0)):
        with pytest.raises(ConfigError, match="moments"):
            Moments(*wrong)
    with pytest.raises(ConfigError, match="centre"):
        MeanEpoch(0.5, 1.5, Moments(), Moments())
    with pytest.raises(ConfigError, match="margin of a difference of means"):
        log_e_safe([], 1.0)
