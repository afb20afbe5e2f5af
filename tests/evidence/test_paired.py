"""Pairs: E is a martingale under any drift of the excess, and the interval holds the running average."""

from itertools import product
from math import exp, isfinite, log, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import mixture
from interlock.evidence.paired import Pairs, excess_interval, log_e_harm, log_e_safe

counts = st.integers(0, 10**6)
pairs = st.builds(Pairs, counts, counts, counts)
margins = st.floats(-0.5, 0.5)
# (excess, how often the two differ beyond what the excess needs)
steps = st.lists(st.tuples(st.floats(-0.4, 0.4), st.floats(0, 0.5)), min_size=1, max_size=5)


def mean_of_e(excesses: list[tuple[float, float]], margin: float, harm: bool) -> float:
    total = 0.0
    for outcome in product((1, 0, -1), repeat=len(excesses)):
        chance = 1.0
        for z, (excess, more) in zip(outcome, excesses, strict=True):
            worse, better = max(excess, 0) + more / 2, max(-excess, 0) + more / 2
            chance *= worse if z == 1 else better if z == -1 else 1 - worse - better
        seen = Pairs(outcome.count(1), outcome.count(0), outcome.count(-1))
        total += chance * exp((log_e_harm if harm else log_e_safe)(seen, margin))
    return total


@given(
    excess=st.floats(-0.4, 0.4), mores=st.lists(st.floats(0, 0.5), min_size=1, max_size=5), harm=st.booleans()
)
def test_its_mean_is_one_at_the_margin(excess: float, mores: list[float], harm: bool) -> None:
    assert mean_of_e([(excess, more) for more in mores], excess, harm) == pytest.approx(1.0, rel=1e-9)


@given(drift=steps)
def test_its_mean_is_at_most_one_where_the_average_excess_keeps_the_margin(
    drift: list[tuple[float, float]],
) -> None:
    average = sum(excess for excess, _ in drift) / len(drift)
    assert mean_of_e(drift, average, harm=True) <= 1 + 1e-9
    assert mean_of_e(drift, average, harm=False) <= 1 + 1e-9


def test_the_test_of_the_mean_bites() -> None:
    assert mean_of_e([(0.1, 0.1)] * 4, 0.0, harm=True) > 1.05
    assert mean_of_e([(0.1, 0.1)] * 4, 0.2, harm=False) > 1.02


@given(worse=st.integers(0, 12), better=st.integers(0, 12), same=counts, q=st.floats(0.51, 0.99))
def test_without_a_margin_it_is_mcnemars_test(worse: int, better: int, same: int, q: float) -> None:
    found = exp(log_e_harm(Pairs(worse, same, better), 0.0, mixture((2 * q - 1,))))
    assert found == pytest.approx((2 * q) ** worse * (2 * (1 - q)) ** better, rel=1e-6)


@given(zs=st.lists(st.sampled_from([-1, 0, 1]), max_size=12), bet=st.floats(0.01, 0.99), margin=margins)
def test_it_is_a_bet_on_each_pair(zs: list[int], bet: float, margin: float) -> None:
    seen = Pairs(zs.count(1), zs.count(0), zs.count(-1))
    fraction = bet / (1 + bet * margin)
    product_form = prod(1 + fraction * (z - margin) for z in zs)
    assert exp(log_e_harm(seen, margin, mixture((bet,)))) == pytest.approx(product_form, rel=1e-6)
    fraction = bet / (1 - bet * margin)
    product_form = prod(1 + fraction * (margin - z) for z in zs)
    assert exp(log_e_safe(seen, margin, mixture((bet,)))) == pytest.approx(product_form, rel=1e-6)


@given(a=pairs, b=pairs, margin=margins)
def test_pairs_merge_and_failures_count(a: Pairs, b: Pairs, margin: float) -> None:
    merged = a.merge(b)
    assert merged == b.merge(a) and merged.count == a.count + b.count and merged.harm == a.harm + b.harm
    slack = 1e-9 * (1 + a.count)
    worse = Pairs(a.worse + 1, a.same, a.better)
    clean = Pairs(a.worse, a.same + 1, a.better)
    assert log_e_harm(clean, margin) <= log_e_harm(worse, margin) + slack
    assert log_e_safe(worse, margin) <= log_e_safe(clean, margin) + slack


@given(pairs=st.builds(Pairs, *[st.integers(0, 10**9)] * 3), margin=st.floats(-0.999, 0.999))
def test_a_billion_pairs_do_not_overflow(pairs: Pairs, margin: float) -> None:
    assert isfinite(log_e_harm(pairs, margin)) and isfinite(log_e_safe(pairs, margin))


@given(pairs=pairs)
def test_an_interval_surrounds_the_average(pairs: Pairs) -> None:
    found = excess_interval(pairs, 0.05)
    average = pairs.harm / pairs.count if pairs.count else 0.0
    assert -1 <= found.least <= average + 1e-9 and average - 1e-9 <= found.greatest <= 1


def test_clean_pairs_promote_near_the_least_number_that_can() -> None:
    least = next(n for n in range(1, 10_000) if log_e_safe(Pairs(same=n), 0.005) >= log(100))
    assert 919 <= least <= 1.2 * 919  # ln(100) / -ln(1 - .005) = 919
    spoiled = next(n for n in range(1, 10_000) if log_e_safe(Pairs(worse=1, same=n), 0.005) >= log(100))
    assert least < spoiled < 2 * least


def test_impossible_pairs_and_margins_are_refused() -> None:
    with pytest.raises(ConfigError, match="counts of pairs"):
        Pairs(worse=-1)
    for margin in (-1.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="margin of a paired excess"):
            log_e_harm(Pairs(), margin)
