"""The exact interval of a chance: against published values, and by simulation."""

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.evidence.binomial import share


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        # Clopper and Pearson (1934) by way of R's binom.test.
        (0, 10, 0.0, 0.30850),
        (1, 10, 0.00253, 0.44502),
        (5, 10, 0.18709, 0.81291),
        (10, 10, 0.69150, 1.0),
        (3, 100, 0.00623, 0.08518),
        (60, 1000, 0.04610, 0.07656),
    ],
)
def test_the_interval_is_the_published_one(hits: int, of: int, low: float, high: float) -> None:
    found = share(hits, of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-5)


def test_many_tries_do_not_overflow() -> None:
    found = share(20, 5000)
    assert 0.002 < found.low < 0.004 < found.high < 0.0065


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).binomial(40, 0.03, 2000)
    by_hits = {int(hits): share(int(hits), 40) for hits in np.unique(draws)}
    covered = np.mean([by_hits[int(hits)].low <= 0.03 <= by_hits[int(hits)].high for hits in draws])
    above = np.mean([by_hits[int(hits)].low > 0.03 for hits in draws])
    assert covered >= 0.95 and above <= 0.025


def test_nothing_is_known_of_what_was_never_tried() -> None:
    assert (share(0, 0).low, share(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(("hits", "of"), [(-1, 3), (4, 3)])
def test_more_than_all_is_refused(hits: int, of: int) -> None:
    with pytest.raises(ConfigError):
        share(hits, of)
