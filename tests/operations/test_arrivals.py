"""The maths of the open loop: when requests leave, and what their latencies amount to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.operations.arrivals import Percentiles, percentiles, schedule

RATES = st.floats(1, 5000)
SECONDS = st.floats(0.1, 5)


@given(RATES, SECONDS)
def test_constant_arrivals_are_evenly_spaced_and_as_many_as_asked(rate: float, seconds: float) -> None:
    due_s = schedule(rate, seconds)
    assert due_s[0] == 0
    assert len(due_s) == max(1, round(rate * seconds))
    assert np.allclose(np.diff(due_s), 1 / rate)


@given(RATES, SECONDS, st.integers(0, 100))
def test_poisson_arrivals_ascend_within_the_run_and_repeat_with_their_seed(
    rate: float, seconds: float, seed: int
) -> None:
    due_s = schedule(rate, seconds, poisson=True, seed=seed)
    assert np.all(np.diff(due_s) >= 0)
    assert len(due_s) == 0 or (due_s[0] >= 0 and due_s[-1] < seconds)
    assert np.array_equal(due_s, schedule(rate, seconds, poisson=True, seed=seed))


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    gaps_s = np.diff(schedule(1000, 60, poisson=True, seed=1))
    assert gaps_s.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps_s.std() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (10, 0)])
def test_a_schedule_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        schedule(rate, seconds)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200))
def test_percentiles_are_values_that_were_measured_and_ascend(times_ms: list[float]) -> None:
    found = percentiles(times_ms)
    seen = [found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms]
    assert seen == sorted(seen, key=lambda value: -1.0 if value is None else value)
    assert all(value in [round(time_ms, 4) for time_ms in times_ms] for value in seen)
    assert found.max_ms == round(max(times_ms), 4)


def test_percentiles_of_a_known_list() -> None:
    found = percentiles(np.arange(1.0, 1001.0))
    assert (found.p50_ms, found.p99_ms, found.p999_ms, found.max_ms) == (500, 990, 999, 1000)
    assert percentiles([]) == Percentiles(None, None, None, None, None)
