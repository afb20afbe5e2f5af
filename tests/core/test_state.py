"""Sums over workers, nodes and time are exact in any order; a quantile is off by one bucket at most."""

from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.state import BOUNDS_S, BUCKETS, ArmCounts, Histogram, PairCounts, bucket

WIDTH = 2**0.25


def histogram(seconds: list[float]) -> Histogram:
    counts = [0] * BUCKETS
    for one in seconds:
        counts[bucket(one)] += 1
    return Histogram(tuple(counts), sum(seconds))


durations = st.lists(st.floats(0.0, 1000.0), max_size=30)
# Sums of integers are exact, so that the order of adding cannot show in the last bit.
histograms = st.lists(st.integers(0, 500), max_size=20).map(lambda ns: histogram([float(n) for n in ns]))
counts = st.integers(0, 10**9)
arms = st.builds(
    ArmCounts, counts, counts, counts, counts, counts, counts, counts, counts, counts, counts, counts,
    total=histograms, queue=histograms, compute=histograms,
    pairs=st.builds(PairCounts, *[counts] * len(PairCounts.__struct_fields__)),
)  # fmt: skip


@given(a=arms, b=arms, c=arms)
def test_counts_merge_in_any_order(a: ArmCounts, b: ArmCounts, c: ArmCounts) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(ArmCounts()) == a
    for name in ("dispatched", "lost", "refused", "compute_ns", "pairs.worse", "pairs.unshielded"):
        assert attrgetter(name)(a.merge(b)) == attrgetter(name)(a) + attrgetter(name)(b)


@given(a=histograms, b=histograms)
def test_what_was_added_is_what_is_left_when_it_is_taken_away(a: Histogram, b: Histogram) -> None:
    assert a.merge(b).minus(a) == b and a.merge(b).count == a.count + b.count


@given(
    seconds=st.lists(st.floats(BOUNDS_S[0], BOUNDS_S[-1]), min_size=1, max_size=200),
    q=st.floats(0.001, 1.0),
)
def test_a_quantile_is_above_the_true_one_by_one_bucket_at_most(seconds: list[float], q: float) -> None:
    found = histogram(seconds).quantile(q)
    rank = q * len(seconds)
    true = sorted(seconds)[max(0, -int(-rank // 1) - 1)]
    assert found is not None and true <= found <= true * WIDTH * (1 + 1e-12)


@given(seconds=durations, q=st.floats(0.0, 1.0), r=st.floats(0.0, 1.0))
def test_quantiles_grow(seconds: list[float], q: float, r: float) -> None:
    made = histogram(seconds)
    low, high = made.quantile(min(q, r)), made.quantile(max(q, r))
    assert (low is None) == (high is None) == (not seconds)
    assert low is None or high is None or low <= high


@given(seconds=st.floats(0.0, 1e6))
def test_a_bucket_holds_what_it_says(seconds: float) -> None:
    k = bucket(seconds)
    assert k == BUCKETS - 1 or seconds <= BOUNDS_S[k]
    assert k == 0 or seconds > BOUNDS_S[k - 1]


def test_a_histogram_of_other_buckets_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"has {BUCKETS} buckets, got 3"):
        Histogram((1, 2, 3))
