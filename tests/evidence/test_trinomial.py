"""The excess of wrong answers: chances as enumerated, a level that holds, power."""

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.paired import Pairs, excess_interval
from interlock.evidence.trinomial import _at_most, excess_bounds, is_below
from tests.thorough import examples

ALPHA = 0.05
REPLICATIONS = 3000
MOST = ALPHA + 3 * (ALPHA * (1 - ALPHA) / REPLICATIONS) ** 0.5
"""A share of wrong verdicts that a test of level ALPHA exceeds once in 700 runs; the seeds are fixed."""
counts = st.integers(0, 60)


@pytest.mark.parametrize(("worse", "better"), [(0.3, 0.1), (0.05, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_the_chances_are_those_of_an_enumeration(worse: float, better: float) -> None:
    chance = {1: worse, 0: 1 - worse - better, -1: better}
    for t in range(-7, 8):
        whole = sum(prod(chance[z] for z in zs) for zs in product(chance, repeat=6) if sum(zs) <= t)
        found = float(_at_most(t, 6, np.array([worse]), np.array([better]))[0])
        assert found == pytest.approx(whole, abs=1e-9), t


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "better", "margin"), [(60, 0.1, 0.05), (200, 0.01, 0.01), (500, 0.05, 0.02)]
)
def test_at_the_margin_either_verdict_is_wrong_at_most_alpha_of_the_time(
    rows: int, better: float, margin: float
) -> None:
    chances = [better + margin, 1 - 2 * better - margin, better]
    seen, times = np.unique(
        np.random.default_rng(rows).multinomial(rows, chances, REPLICATIONS), axis=0, return_counts=True
    )
    passed = worse = 0
    for (w, same, b), count in zip(seen.tolist(), times.tolist(), strict=True):
        passed += count * is_below(Pairs(w, same, b), margin, ALPHA)
        worse += count * is_below(Pairs(b, same, w), -margin, ALPHA)
    assert max(passed, worse) / REPLICATIONS <= MOST


@pytest.mark.slow
def test_that_test_of_the_level_bites() -> None:
    """A test at three times the level is found out by the same count."""
    seen = np.random.default_rng(7).multinomial(2000, [0.07, 0.88, 0.05], 300)
    wrong = sum(is_below(Pairs(w, same, b), 0.02, 3 * ALPHA) for w, same, b in seen.tolist())
    assert wrong / 300 > ALPHA + 3 * (ALPHA * (1 - ALPHA) / 300) ** 0.5


def test_what_is_worse_is_found_and_what_is_alike_passes() -> None:
    random = np.random.default_rng(3)
    worse = random.multinomial(1000, [0.08, 0.90, 0.02], 100).tolist()
    assert sum(is_below(Pairs(b, same, w), -0.01, ALPHA) for w, same, b in worse) >= 95
    alike = random.multinomial(5000, [0.02, 0.96, 0.02], 100).tolist()
    assert sum(is_below(Pairs(w, same, b), 0.01, ALPHA) for w, same, b in alike) >= 90


@settings(max_examples=examples(20))
@given(worse=counts, same=st.integers(1, 2000), better=counts, margin=st.floats(0.001, 0.3))
def test_the_ends_say_what_the_test_says(worse: int, same: int, better: int, margin: float) -> None:
    pairs = Pairs(worse, same, better)
    found = excess_bounds(pairs, ALPHA)
    assert -1 <= found.least <= pairs.harm / pairs.count <= found.greatest <= 1
    if abs(found.greatest - margin) > 1e-6:
        assert (found.greatest < margin) == is_below(pairs, margin, ALPHA)
    if abs(found.least - margin) > 1e-6:
        assert (found.least > margin) == is_below(Pairs(better, same, worse), -margin, ALPHA)


def test_it_costs_fewer_rows_than_an_interval_that_may_be_looked_at_all_the_time() -> None:
    pairs = Pairs(worse=200, same=9600, better=200)
    once, always = excess_bounds(pairs, ALPHA), excess_interval(pairs, 2 * ALPHA)
    assert once.greatest < 0.7 * always.greatest


def test_levels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels"):
        excess_bounds(Pairs(same=10), 0.0)
    with pytest.raises(ConfigError, match="0 pairs"):
        excess_bounds(Pairs(), 0.05)
