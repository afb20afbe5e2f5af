"""The interval of a rate: wider than a fixed-sample one, never by much, and sane at the edges."""

from importlib import import_module
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.confidence import rate_interval


@pytest.fixture(scope="module")
def stats() -> ModuleType:
    """The oracle, imported where it is asked: that takes a second."""
    return import_module("scipy.stats")


@given(requests=st.integers(1, 10**6), share=st.floats(0, 1))
def test_it_contains_the_exact_interval_of_one_look(stats: ModuleType, requests: int, share: float) -> None:
    bad = round(share * requests)
    found = rate_interval(bad, requests, 0.05)
    low = stats.beta.ppf(0.025, bad, requests - bad + 1) if bad else 0.0
    high = stats.beta.ppf(0.975, bad + 1, requests - bad) if bad < requests else 1.0
    assert 0 <= found.least <= low + 1e-9 and high - 1e-9 <= found.greatest <= 1


@pytest.mark.parametrize(("bad", "requests"), [(5, 100), (50, 1000), (500, 10_000), (5000, 100_000)])
def test_looking_always_costs_less_than_twice_the_width(stats: ModuleType, bad: int, requests: int) -> None:
    found = rate_interval(bad, requests, 0.05)
    low = stats.beta.ppf(0.025, bad, requests - bad + 1)
    high = stats.beta.ppf(0.975, bad + 1, requests - bad)
    assert found.greatest - found.least < 2.0 * (high - low)


@given(bad=st.integers(0, 10**5), good=st.integers(0, 10**5))
def test_it_grows_with_bad_events(bad: int, good: int) -> None:
    fewer, more = rate_interval(bad, bad + good + 1, 0.05), rate_interval(bad + 1, bad + good + 1, 0.05)
    assert fewer.least <= more.least + 1e-12 and fewer.greatest <= more.greatest + 1e-12


def test_the_edges() -> None:
    nothing = rate_interval(0, 0, 0.05)
    assert (nothing.least, nothing.greatest) == (0, 1)
    assert rate_interval(0, 10**9, 0.01).greatest < 1e-8
    assert rate_interval(10**9, 10**9, 0.01).greatest == 1 and rate_interval(10**9, 10**9, 0.01).least > 0.99
    assert rate_interval(0, 1000, 0.05).greatest < 1.5 * 3.7 / 1000  # ln(40) = 3.7 events at alpha / 2


def test_impossible_counts_are_refused() -> None:
    for bad, requests in ((-1, 10), (11, 10)):
        with pytest.raises(ConfigError, match="bad events among"):
            rate_interval(bad, requests, 0.05)
    with pytest.raises(ConfigError, match="alpha"):
        rate_interval(1, 10, 0.0)
