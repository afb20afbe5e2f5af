"""Ends of a quantile: exact by the binomial, and missed as often as they say."""

from math import inf

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.evidence.order import least_values, quantile_bounds


@pytest.mark.parametrize("rows", [300, 3000])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_either_end_misses_the_quantile_at_most_alpha_of_the_time(rows: int, alpha: float) -> None:
    random = np.random.default_rng(rows)
    above = below = 0
    for _ in range(1000):
        found = quantile_bounds(random.random(rows), 0.99, alpha)
        above += found.greatest < 0.99
        below += found.least > 0.99
    most = alpha + 3 * (alpha * (1 - alpha) / 1000) ** 0.5
    assert above / 1000 <= most and below / 1000 <= most
    # It is not idle either: the ends are the nearest that keep the level.
    assert below / 1000 >= alpha / 4


def test_too_few_values_have_no_end_and_one_more_has() -> None:
    most = least_values(0.99, 0.05)
    assert quantile_bounds(np.arange(most - 1.0), 0.99, 0.05).greatest == inf
    assert quantile_bounds(np.arange(float(most)), 0.99, 0.05).greatest == most - 1
    assert quantile_bounds(np.zeros(0), 0.5, 0.05).least == -inf


def test_what_has_no_value_counts_as_slower_than_any() -> None:
    values = np.concatenate([np.zeros(970), np.full(30, inf)])
    assert quantile_bounds(values, 0.99, 0.05).least == inf


def test_levels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError):
        quantile_bounds(np.zeros(3), 1.0, 0.05)
