"""Units: mean of E one over all positions, with ramps and idle epochs; looks that come at fixed numbers."""

from collections.abc import Sequence
from itertools import product
from math import exp, isfinite, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.units import (
    FIRST_LOOK,
    LOOKS,
    UnitHistory,
    log_e_harm,
    log_threshold_at_look,
    look_due,
)

Blocks = tuple[tuple[int | None, ...], ...]
blocks = st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 30))] * 3), min_size=1, max_size=3).map(
    tuple
)
ramps = st.tuples(*[st.floats(0.0, 1.0)] * 3)


def mean_of_e(weights: Sequence[float], as_incumbent: Blocks, as_candidate: Blocks) -> float:
    """Over the positions of all units; the two blocks say what each unit does in either arm."""
    edges = sorted({0.0, 1.0, *weights})
    places = list(zip(edges, edges[1:], strict=False))
    total = 0.0
    for chosen in product(places, repeat=len(as_incumbent)):
        chance, rows = 1.0, []
        for (low, high), a, b in zip(chosen, as_incumbent, as_candidate, strict=True):
            chance *= high - low
            mine = tuple(low < weight for weight in weights)
            rows.append(UnitHistory(tuple(y if m else x for x, y, m in zip(a, b, mine, strict=True)), mine))
        total += chance * exp(log_e_harm(weights, rows))
    return total


@given(weights=ramps, bad=blocks)
def test_its_mean_is_one_where_units_fare_the_same(weights: tuple[float, float, float], bad: Blocks) -> None:
    assert mean_of_e(weights, bad, bad) == pytest.approx(1.0, rel=1e-9)


@given(weights=ramps, bad=blocks, part=st.floats(0, 1))
def test_its_mean_is_at_most_one_where_the_candidate_is_better(
    weights: tuple[float, float, float], bad: Blocks, part: float
) -> None:
    better = tuple(tuple(None if n is None else int(n * part) for n in unit) for unit in bad)
    assert mean_of_e(weights, bad, better) <= 1 + 1e-9


def test_the_test_of_the_mean_bites() -> None:
    one: Blocks = ((2, 1, None),) * 4
    three: Blocks = ((9, 5, None),) * 4
    assert mean_of_e((0.3, 0.5, 0.5), one, three) > 1.1


@given(weights=ramps, bad=blocks, copies=st.integers(1, 1000))
def test_equal_units_may_be_counted_together(
    weights: tuple[float, float, float], bad: Blocks, copies: int
) -> None:
    mine = tuple(weight > 0.5 for weight in weights)
    together = log_e_harm(weights, [UnitHistory(unit, mine, copies) for unit in bad])
    apart = (
        log_e_harm(weights, [UnitHistory(unit, mine) for unit in bad] * copies) if copies < 20 else together
    )
    assert together == pytest.approx(apart, rel=1e-9, abs=1e-9) and isfinite(together)


def test_one_broken_unit_does_not_decide() -> None:
    heavy = UnitHistory((10**9,), (True,))
    assert log_e_harm([0.05], [heavy]) < log(1 / 0.05) + 0.1 < log_threshold_at_look(0.01)


def test_looks_come_at_fixed_numbers_and_end() -> None:
    due = [n for n in range(1, 50_000) if look_due(n - 1, n) is not None]
    assert due == [FIRST_LOOK * 2**k for k in range(LOOKS)]
    assert look_due(0, 10**9) == LOOKS and look_due(10**8, 10**9) is None
    assert log_threshold_at_look(0.01) == pytest.approx(log(LOOKS / 0.01))


def test_a_history_of_other_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 epochs, the release has 2"):
        log_e_harm([0.1, 0.2], [UnitHistory((1,), (True,))])
