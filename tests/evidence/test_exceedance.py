"""Cuts come from past latencies, lie on the histogram's bounds, and count exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.state import BOUNDS_S, BUCKETS, Histogram, bucket
from interlock.evidence.exceedance import LEAST_ABOVE, above, compare, cuts
from interlock.evidence.paired import Pairs

STEP = 2**0.25


def histogram(seconds: list[float]) -> Histogram:
    counts = [0] * BUCKETS
    for one in seconds:
        counts[bucket(one)] += 1
    return Histogram(tuple(counts), sum(seconds))


latencies = st.lists(st.floats(1e-5, 100), min_size=1, max_size=200)


@given(past=latencies, times=st.integers(1, 50), margin=st.floats(0, 3))
def test_a_cut_is_a_quantile_of_the_past_with_at_least_the_margin(
    past: list[float], times: int, margin: float
) -> None:
    seen = histogram(past * times)
    for cut in cuts(seen, margin):
        assert cut.incumbent_s in BOUNDS_S and cut.candidate_s in BOUNDS_S
        assert margin - 1e-6 <= cut.margin <= (1 + margin) * STEP * (1 + 1e-6) - 1
        assert above(seen, cut.incumbent_s) <= seen.count * (1 - cut.level) + 1e-6
        assert seen.count * (1 - cut.level) >= LEAST_ABOVE


@given(seconds=latencies, at=st.integers(0, len(BOUNDS_S) - 1))
def test_what_lies_above_a_cut_is_counted_exactly(seconds: list[float], at: int) -> None:
    assert above(histogram(seconds), BOUNDS_S[at]) == sum(one > BOUNDS_S[at] for one in seconds)


def test_without_a_margin_both_arms_have_one_cut() -> None:
    assert all(cut.candidate_s == cut.incumbent_s for cut in cuts(histogram([0.01, 0.02, 0.05] * 1000)))


def test_too_little_past_gives_no_cut() -> None:
    assert cuts(Histogram()) == ()
    assert [cut.level for cut in cuts(histogram([1e-3 * 1.003**k for k in range(300)]))] == [0.5, 0.95]
    assert [cut.level for cut in cuts(histogram([1e-3 * 1.003**k for k in range(3000)]))] == [0.5, 0.95, 0.99]
    assert cuts(histogram([0.01] * 1000), margin=1e9) == ()  # beyond the last bound


def test_a_pair_of_latencies_is_slower_faster_or_tied() -> None:
    assert compare(0.02, 0.01, 0.5) == Pairs(worse=1)
    assert compare(0.01, 0.01, 0.0) == Pairs(same=1)
    assert compare(0.012, 0.01, 0.5) == Pairs(better=1)


def test_what_is_no_cut_is_refused() -> None:
    for seconds in (0.0123, 0.0, 1e9):
        with pytest.raises(ConfigError, match="not a bound"):
            above(Histogram(), seconds)
    with pytest.raises(ConfigError, match="latency margin"):
        cuts(Histogram(), margin=-0.1)
    with pytest.raises(ConfigError, match="levels"):
        cuts(Histogram(), levels=(1.0,))
