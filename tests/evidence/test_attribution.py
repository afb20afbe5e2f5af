"""Failure attribution: a martingale by enumeration of all requests, mergeable, monotone, invertible."""

from collections.abc import Sequence
from itertools import product
from math import exp, inf, isfinite, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.attribution import HARM, log_e_harm, log_e_safe, ratio_interval, share
from interlock.evidence.epochs import Epoch, merge

weights = st.floats(0.001, 0.999)
counts = st.integers(0, 10**6)
epochs = st.lists(st.builds(Epoch, st.floats(0, 1), counts, counts), max_size=5)
margins = st.floats(0.2, 5)
rates = st.floats(0.001, 0.15)


def mean_over_requests(requests: Sequence[tuple[float, float, float]], margin: float, harm: bool) -> float:
    """The mean of E over all that may happen to requests with (weight, p_a, p_b), one epoch each."""
    total = 0.0
    for arms in product((0, 1), repeat=len(requests)):
        for bads in product((0, 1), repeat=len(requests)):
            chance, seen = 1.0, []
            for (weight, p_a, p_b), arm, bad in zip(requests, arms, bads, strict=True):
                p = p_b if arm else p_a
                chance *= (weight if arm else 1 - weight) * (p if bad else 1 - p)
                seen.append(Epoch(weight, bad * (1 - arm), bad * arm))
            total += chance * exp((log_e_harm if harm else log_e_safe)(seen, margin))
    return total


@given(
    requests=st.lists(st.tuples(weights, rates), min_size=1, max_size=4), margin=margins, harm=st.booleans()
)
def test_its_mean_is_one_at_the_edge_whatever_the_rates_and_weights(
    requests: list[tuple[float, float]], margin: float, harm: bool
) -> None:
    edge = [(weight, p, p * margin) for weight, p in requests]
    assert mean_over_requests(edge, margin, harm) == pytest.approx(1.0, rel=1e-9)


@given(requests=st.lists(st.tuples(weights, rates, st.floats(0, 1)), min_size=1, max_size=3), margin=margins)
def test_its_mean_is_at_most_one_inside_the_null(
    requests: list[tuple[float, float, float]], margin: float
) -> None:
    better = [(weight, p, p * margin * part) for weight, p, part in requests]
    assert mean_over_requests(better, margin, harm=True) <= 1 + 1e-9
    worse = [(weight, p * part, p * margin) for weight, p, part in requests]
    assert mean_over_requests(worse, margin, harm=False) <= 1 + 1e-9


def test_the_test_of_the_mean_bites_outside_the_null() -> None:
    assert mean_over_requests([(0.3, 0.1, 0.15)] * 3, 1.0, harm=True) > 1.005
    assert mean_over_requests([(0.3, 0.1, 0.05)] * 3, 1.0, harm=False) > 1.005


@given(seen=st.lists(st.builds(Epoch, weights, *[st.integers(0, 6)] * 2), max_size=5), margin=margins)
def test_it_is_the_product_of_its_definition(seen: list[Epoch], margin: float) -> None:
    total = 0.0
    for tilt, weight in zip(HARM.tilts, HARM.log_weights, strict=True):
        total += exp(weight) * prod(
            (share(e.weight, tilt * margin) / share(e.weight, margin)) ** e.candidate
            * ((1 - share(e.weight, tilt * margin)) / (1 - share(e.weight, margin))) ** e.incumbent
            for e in seen
        )
    assert exp(log_e_harm(seen, margin)) == pytest.approx(total, rel=1e-6)


@given(seen=epochs, parts=st.lists(st.floats(0, 1), min_size=5, max_size=5), margin=margins)
def test_counts_of_two_workers_merge(seen: list[Epoch], parts: list[float], margin: float) -> None:
    mine = [
        Epoch(e.weight, int(e.incumbent * p), int(e.candidate * p)) for e, p in zip(seen, parts, strict=False)
    ]
    theirs = [
        Epoch(e.weight, e.incumbent - m.incumbent, e.candidate - m.candidate)
        for e, m in zip(seen, mine, strict=True)
    ]
    assert merge(mine, theirs) == tuple(seen)
    # An epoch cut in two at the same weight says the same, in whatever order.
    whole, split = log_e_harm(seen, margin), log_e_harm([*theirs, *mine], margin)
    assert split == pytest.approx(whole, rel=1e-9, abs=1e-6)


@given(seen=epochs.filter(bool), at=st.integers(0, 4), more=st.integers(1, 1000), margin=margins)
def test_a_bad_answer_counts_against_its_arm(seen: list[Epoch], at: int, more: int, margin: float) -> None:
    at %= len(seen)
    e = seen[at]
    slack = 1e-9 * (1 + sum(one.both for one in seen))
    candidate = [*seen[:at], Epoch(e.weight, e.incumbent, e.candidate + more), *seen[at + 1 :]]
    incumbent = [*seen[:at], Epoch(e.weight, e.incumbent + more, e.candidate), *seen[at + 1 :]]
    assert log_e_harm(incumbent, margin) - slack <= log_e_harm(seen, margin)
    assert log_e_harm(seen, margin) <= log_e_harm(candidate, margin) + slack
    assert log_e_safe(candidate, margin) - slack <= log_e_safe(seen, margin)
    assert log_e_safe(seen, margin) <= log_e_safe(incumbent, margin) + slack


@given(seen=epochs, low=margins, high=margins)
def test_a_wider_margin_is_harder_to_alarm_and_easier_to_keep(
    seen: list[Epoch], low: float, high: float
) -> None:
    low, high = min(low, high), max(low, high)
    slack = 1e-9 * (1 + sum(one.both for one in seen))
    assert log_e_harm(seen, high) <= log_e_harm(seen, low) + slack
    assert log_e_safe(seen, low) <= log_e_safe(seen, high) + slack


@given(
    weight=st.sampled_from([0.0, 1e-300, 1e-12, 0.5, 1 - 1e-12, 1.0]),
    a=st.integers(0, 10**9),
    b=st.integers(0, 10**9),
    margin=st.floats(1e-3, 1e3),
)
def test_extreme_weights_and_counts_stay_finite(weight: float, a: int, b: int, margin: float) -> None:
    seen = [Epoch(weight, a, b)]
    assert isfinite(log_e_harm(seen, margin)) and isfinite(log_e_safe(seen, margin))
    if weight in (0.0, 1.0):
        assert abs(log_e_harm(seen, margin)) < 1e-12 and abs(log_e_safe(seen, margin)) < 1e-12


@given(seen=st.lists(st.builds(Epoch, weights, st.integers(0, 10**4), st.integers(0, 10**4)), max_size=3))
def test_an_interval_holds_what_is_not_rejected(seen: list[Epoch]) -> None:
    found = ratio_interval(seen, 0.05)
    assert 0 <= found.least <= found.greatest
    if found.least > 0:
        assert log_e_harm(seen, found.least * 0.999) > log_e_harm(seen, found.least * 1.001)
    if seen and sum(e.candidate for e in seen) > 100 < sum(e.incumbent for e in seen):
        assert 0 < found.least < found.greatest < inf


def test_an_interval_narrows_around_the_truth() -> None:
    widths = []
    for n in (100, 1000, 10_000, 100_000):
        found = ratio_interval([Epoch(0.2, 4 * n, 2 * n)], 0.05)
        assert found.least < 2.0 < found.greatest
        widths.append(found.greatest / found.least)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 1.05
    assert ratio_interval([], 0.05).least == 0 and ratio_interval([], 0.05).greatest == inf


@pytest.mark.parametrize("margin", [0.0, -1.0, inf, float("nan")])
def test_a_margin_that_is_no_ratio_is_refused(margin: float) -> None:
    with pytest.raises(ConfigError, match="the margin of a ratio"):
        log_e_harm([], margin)


@pytest.mark.parametrize(
    "epoch", [(-0.1, 0, 0), (1.1, 0, 0), (0.5, -1, 0), (0.5, 0, inf), (0.5, float("nan"), 0)]
)
def test_an_epoch_with_impossible_numbers_is_refused(epoch: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="epoch"):
        Epoch(*epoch)


def test_only_the_same_epochs_merge() -> None:
    with pytest.raises(ConfigError, match="want the same"):
        merge([Epoch(0.1, 0, 0)], [Epoch(0.2, 0, 0)])
    with pytest.raises(ConfigError, match="want the same"):
        merge([Epoch(0.1, 0, 0)], [])
