"""The e-process behind the gates: exact against scipy, mean 1 by enumeration, at ease with any size."""

from importlib import import_module
from itertools import product
from math import exp, inf, isfinite, log, prod
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import last_rejected, log_sum, log_threshold, log_tilted, mixture


@pytest.fixture(scope="module")
def stats() -> ModuleType:
    """The oracle, imported where it is asked: that takes a second."""
    return import_module("scipy.stats")


tilts = st.lists(st.floats(0.01, 50), min_size=1, max_size=6).map(mixture)
probabilities = st.floats(0.001, 0.999)


@given(n=st.integers(0, 500), share=st.floats(0, 1), p=probabilities, g=st.floats(0.01, 50))
def test_one_tilt_is_the_likelihood_ratio_of_two_binomials(
    stats: ModuleType, n: int, share: float, p: float, g: float
) -> None:
    hits, q = round(n * share), g * p / (1 + (g - 1) * p)
    oracle = stats.binom.logpmf(hits, n, q) - stats.binom.logpmf(hits, n, p)
    assert log_tilted(hits, [(n, p)], mixture((g,))) == pytest.approx(oracle, abs=1e-6)


@given(mixed=tilts, limits=st.lists(probabilities, min_size=1, max_size=7))
def test_its_mean_is_one_at_the_edge_of_the_null(mixed: Any, limits: list[float]) -> None:
    mean = sum(
        prod(p if hit else 1 - p for hit, p in zip(hits, limits, strict=True))
        * exp(log_tilted(sum(hits), [(1, p) for p in limits], mixed))
        for hits in product((0, 1), repeat=len(limits))
    )
    assert mean == pytest.approx(1.0, rel=1e-9)


@given(logs=st.lists(st.floats(-50, 50), min_size=1))
def test_log_sum_is_the_logarithm_of_the_sum(logs: list[float]) -> None:
    assert log_sum(logs) == pytest.approx(log(sum(exp(value) for value in logs)), abs=1e-9)


@given(hits=st.integers(0, 10**9), misses=st.integers(0, 10**9), p=st.floats(1e-12, 1 - 1e-12))
def test_a_billion_events_do_not_overflow(hits: int, misses: int, p: float) -> None:
    assert isfinite(log_tilted(hits, [(hits + misses, p)], mixture((0.01, 1.1, 30))))


def test_nothing_is_known_from_nothing() -> None:
    assert log_sum([]) == -inf
    assert log_tilted(0, [], mixture((2, 3))) == pytest.approx(0.0, abs=1e-12)
    assert log_tilted(1, [(1, 0.5)], mixture((0,))) == -inf


def test_the_end_of_an_interval_is_on_the_rejected_side() -> None:
    found = last_rejected(lambda x: x, 10.0, -10.0, 2.0)
    assert found is not None and 2.0 <= found < 2.0 + 1e-6
    assert last_rejected(lambda x: x, 1.0, -10.0, 2.0) is None


@pytest.mark.parametrize("wrong", [(), (-1,), (inf,), (float("nan"),)])
def test_bad_tilts_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="tilts"):
        mixture(wrong)


def test_bad_weights_and_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="prior weights"):
        mixture((1, 2), (1, 0))
    with pytest.raises(ConfigError, match="a weight for each"):
        mixture((1, 2), (1,))
    for alpha in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="alpha"):
            log_threshold(alpha)
    assert log_threshold(0.01, 3) == pytest.approx(log(300))
