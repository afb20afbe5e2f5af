"""What is promised of the gates, simulated with fixed seeds: each fails if its promise does not hold.

The long runs, beside other tools' rules, are in benchmarks/bench_evidence.py.
"""

from math import log, sqrt

import numpy as np
import pytest

from benchmarks import bench_evidence as sim
from interlock.evidence.attribution import log_e_harm
from interlock.evidence.combine import log_mean
from interlock.evidence.epochs import Epoch

pytestmark = pytest.mark.slow


def holds(found: sim.Estimate, limit: float, runs: int) -> bool:
    """Whether a share of runs is at most `limit`, give or take three standard errors of one that just is."""
    return found.mean <= limit + 3 * sqrt(limit * (1 - limit) / runs)


def test_the_bound_is_that_of_the_design() -> None:
    assert [round(sim.bound(*cell, 0.05)) for cell in sim.CELLS] == [4901, 238, 378]


@pytest.mark.parametrize("cell", sim.CELLS, ids=str)
def test_a_worse_candidate_is_seen_within_1_4_times_the_bound(cell: tuple[float, float]) -> None:
    found = sim.attribution_detection(*cell, 0.05, 2500, np.random.default_rng(11))
    assert found.high <= 1.4 * sim.bound(*cell, 0.05)
    # No test can be below it by more than chance; a simulation that is would be wrong.
    assert found.low > sim.bound(*cell, 0.05)


@pytest.mark.parametrize(("weight", "runs"), [(0.05, 1500), (0.5, 6000)])
def test_false_alarms_of_attribution_are_rare(weight: float, runs: int) -> None:
    assert holds(sim.attribution_false_alarms(0.05, weight, runs, np.random.default_rng(12)), 0.01, runs)


def test_a_ramp_with_drift_fools_others_and_not_attribution() -> None:
    rng, runs = np.random.default_rng(13), 400
    same = sim.ramp(sim.DRIFT, 1.0, runs, rng)
    assert holds(same.attribution, 0.01, runs)
    assert same.msprt.mean > 0.95 and same.z.mean > 0.95  # else this traffic would prove nothing
    assert sim.ramp(sim.DRIFT, 1.5, 50, rng).attribution.mean == 1.0


@pytest.mark.parametrize("given", [0.9, 0.5])
@pytest.mark.parametrize("cell", sim.CELLS, ids=str)
def test_pairs_show_a_worse_candidate_within_1_4_times_their_bound(
    cell: tuple[float, float], given: float
) -> None:
    found = sim.paired_detection(*cell, given, 2000, np.random.default_rng(14))
    limit = sim.paired_bound(*cell, given)
    assert limit < found.low and found.high <= 1.4 * limit


def test_false_alarms_of_pairs_are_rare() -> None:
    assert holds(sim.paired_false_alarms(0.05, 0.9, 2000, np.random.default_rng(15)), 0.01, 2000)


@pytest.mark.parametrize("gates", [1, 4])
def test_a_threefold_latency_is_seen_within_10_requests(gates: int) -> None:
    found = sim.latency_detection(3.0, 0.05, 3000, np.random.default_rng(16), gates=gates)
    assert found.high <= 10 and found.median <= 10


def test_sticky_units_are_judged_rightly_as_blocks_or_in_pairs() -> None:
    rng, runs = np.random.default_rng(17), 150
    same = sim.sticky(1000, 1.0, 0.05, runs, rng)
    assert holds(same.by_unit, 0.01, runs) and holds(same.paired, 0.01, runs)
    # What is wrong with counting requests: without this, the two lines above would prove nothing.
    assert not holds(same.by_request, 0.01, runs)
    worse = sim.sticky(5000, 2.0, 0.05, 60, rng)
    assert worse.by_unit.mean > 0.9 and worse.paired.mean > 0.95
    assert worse.by_unit.mean >= worse.first_failures.mean


@pytest.mark.parametrize("people", [200, 5000])
@pytest.mark.parametrize("times", [0.5, 1.0])
def test_sticky_units_with_a_good_candidate_do_not_alarm(people: int, times: float) -> None:
    found = sim.sticky(people, times, 0.2, 600, np.random.default_rng(18), given=min(0.9, times))
    assert holds(found.by_unit, 0.01, 600) and holds(found.paired, 0.01, 600)


def test_a_candidate_at_the_margin_is_not_promoted_while_weights_and_rates_change() -> None:
    rng, runs = np.random.default_rng(19), 25
    for rates, weights in ((sim.DRIFT, (0.5, 0.2, 0.05)), (sim.DRIFT[::-1], sim.RAMP)):
        found = sim.wrong_promotions(rates, weights, 0.005, 0.005, runs, rng)
        assert holds(found.weighted, 0.01, runs)
        assert found.two_intervals.mean > 0.5  # the rule that it replaces


def test_good_candidates_are_promoted() -> None:
    rng = np.random.default_rng(20)
    assert 919 <= sim.clean_pairs(0.005) <= 1100
    for found in (
        sim.promotions(0.001, 0.001, 0.05, 0.005, 20, rng),
        sim.paired_promotions(0.02, 0.02, 0.9, 0.005, 40, rng),
    ):
        assert found.share.mean == 1.0 and found.taken.mean < 4000


@pytest.mark.parametrize("rates", [(0.05, 0.05, 0.05), (0.02, 0.3, 0.1)])
def test_an_interval_of_a_rate_holds_its_running_average(rates: tuple[float, ...]) -> None:
    assert holds(sim.rate_misses(rates, 150, np.random.default_rng(21)), 0.05, 150)


def test_the_ratio_gate_keeps_its_level_and_sees_a_tenth() -> None:
    rng = np.random.default_rng(22)
    assert holds(sim.mismatch(0.1, 0.1, 20_000, 300, rng), 0.01, 300)
    assert sim.mismatch(0.1, 0.11, 50_000, 30, rng).mean > 0.9


def test_the_gate_of_means_keeps_its_level_and_sees_a_tenth() -> None:
    rng = np.random.default_rng(23)
    assert holds(sim.bounded_alarms(0.0, 0.5, 20_000, 150, rng), 0.01, 150)
    assert sim.bounded_alarms(0.1, 0.5, 20_000, 30, rng).mean > 0.9


def test_many_gates_together_keep_the_level_that_each_alone_would_exceed() -> None:
    """Ten independent gates of fair coins, each at its own edge: the union bound, and what it is for."""
    rng, runs, alpha = np.random.default_rng(24), 400, 0.1
    limits = sim.boundary(_coin, 1000, log(10 / alpha))
    alone = sim.boundary(_coin, 1000, log(1 / alpha))
    hits = np.cumsum(rng.random((runs, 10, 1000)) < 0.5, axis=2)
    together = (hits >= limits[1:]).any((1, 2))
    assert holds(sim.share_of(int(together.sum()), runs), alpha, runs)
    assert (hits >= alone[1:]).any((1, 2)).mean() > 2 * alpha
    assert log_mean([_coin(1000, 500)] * 3) == pytest.approx(_coin(1000, 500))


def _coin(n: int, hits: int) -> float:
    return log_e_harm([Epoch(0.5, n - hits, hits)])
