"""The mean of capped losses: its level holds for heavy tails, and it finds what is worse."""

from collections.abc import Callable

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.capped import is_below, mean_bounds

ALPHA = 0.05
REPLICATIONS = 2000
MOST = ALPHA + 3 * (ALPHA * (1 - ALPHA) / REPLICATIONS) ** 0.5
Draw = Callable[[np.random.Generator, int], Array]

DRAWS: dict[str, Draw] = {
    "normal": lambda random, rows: random.normal(0, 0.3, rows),
    "student t of 2 degrees": lambda random, rows: 0.1 * random.standard_t(2, rows),
    "differences of lognormals": lambda random, rows: (
        random.lognormal(-2, 2, rows) - random.lognormal(-2, 2, rows)
    ),
    "rarely all": lambda random, rows: (random.random(rows) < 0.01).astype(float),
    "rarely nothing": lambda random, rows: -(random.random(rows) < 0.99).astype(float) * 0.2,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("rows", [40, 400])
def test_either_end_misses_the_mean_at_most_alpha_of_the_time(name: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    whole = np.clip(DRAWS[name](random, 100_000), -1, 1)
    mean = whole.mean()
    above = below = 0
    for _ in range(REPLICATIONS):
        drawn = random.choice(whole, rows)
        above += is_below(drawn, mean, 1.0, ALPHA)
        below += is_below(-drawn, -mean, 1.0, ALPHA)
    assert max(above, below) / REPLICATIONS <= MOST


def test_the_ends_say_what_the_test_says() -> None:
    drawn = np.random.default_rng(5).normal(0.02, 0.2, 300).clip(-1, 1)
    found = mean_bounds(drawn, 1.0, ALPHA)
    for mean in np.linspace(-0.4, 0.4, 41).tolist():
        assert is_below(drawn, mean, 1.0, ALPHA) == (found.greatest < mean)
        assert is_below(-drawn, -mean, 1.0, ALPHA) == (found.least > mean)


def test_that_test_of_the_level_bites_on_the_interval_of_the_normal() -> None:
    """Which losses of rare rows do not keep to: the reason for bets."""
    random = np.random.default_rng(1)
    whole = np.clip(DRAWS["rarely all"](random, 100_000), -1, 1)
    wrong = 0
    for _ in range(1000):
        rows = random.choice(whole, 100)
        wrong += rows.mean() + 1.645 * rows.std() / 10 < whole.mean()
    assert wrong / 1000 > 2 * ALPHA


def test_its_width_is_near_twice_that_of_the_normal_where_there_are_many_rows() -> None:
    rows = np.random.default_rng(2).normal(0, 0.2, 5000).clip(-1, 1)
    found = mean_bounds(rows, 1.0, ALPHA)
    assert found.greatest - rows.mean() < 2.6 * 1.645 * rows.std() / 5000**0.5


def test_a_clearly_worse_mean_is_found() -> None:
    random = np.random.default_rng(3)
    found = [mean_bounds(random.normal(0.1, 0.3, 1000).clip(-1, 1), 1.0, ALPHA).least for _ in range(50)]
    assert min(found) > 0.02


@pytest.mark.parametrize("cap", [0.5, 1.0, 40.0])
def test_it_scales_with_the_cap(cap: float) -> None:
    rows = np.random.default_rng(4).normal(0.05, 0.2, 300).clip(-1, 1)
    unit, found = mean_bounds(rows, 1.0, ALPHA), mean_bounds(cap * rows, cap, ALPHA)
    assert (found.least, found.greatest) == pytest.approx((cap * unit.least, cap * unit.greatest))


def test_ends_that_the_rows_do_not_tell_are_the_cap() -> None:
    found = mean_bounds(np.zeros(2), 3.0, ALPHA)
    assert (found.least, found.greatest) == (-3.0, 3.0)
    assert mean_bounds(np.zeros(0), 3.0, ALPHA).greatest == 3.0


def test_what_is_beyond_the_cap_is_refused() -> None:
    with pytest.raises(ConfigError, match="cut them first"):
        mean_bounds(np.array([0.0, 2.0]), 1.0, ALPHA)
    with pytest.raises(ConfigError):
        mean_bounds(np.array([np.nan]), 1.0, ALPHA)
    with pytest.raises(ConfigError, match="levels"):
        mean_bounds(np.zeros(3), 1.0, 1.0)
