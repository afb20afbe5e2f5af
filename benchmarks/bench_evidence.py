"""How soon each gate sees a worse candidate, and how often it cries wolf: ours beside the usual ones,
simulated.

    python -m benchmarks.bench_evidence [--runs 4000] [--seed 1]

alpha = .01 throughout. "Canary requests" are those that the candidate answered until the alarm. "False
alarms": shares of runs of 100,000 requests (both arms) without any difference, looked at after every bad
event (ours, exact: nothing moves in between) or after every 100 requests of the candidate (window rules,
mSPRT, z). The bound is ln(1 / alpha) over the greatest growth rate that any test could have that knows
neither arm's rate but both alternatives (mean requests, Wald's identity). Caveats: simulated traffic, not
a service; the rules of other tools are reduced to their decision: a window of 100 canary requests fails
when its rate of errors is above the incumbent's true rate, which they are simply told.

Past 400 lines because ours and the usual rules are judged on the same simulated traffic, with the same seed,
in one run: each table is a function here, and its rows would otherwise be pasted together by hand.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from math import erfc, log, sqrt

import msgspec
import numpy as np
import numpy.typing as npt

from interlock.evidence import attribution, bounded, confidence, difference, paired, ratio, units
from interlock.evidence.epochs import Epoch
from interlock.evidence.mixture import Mixture

ALPHA = 0.01
THRESHOLD = log(1 / ALPHA)
REQUESTS = 100_000
WINDOW = 100
CELLS = ((0.05, 0.06), (0.05, 0.10), (0.01, 0.03))
RAMP = (0.05, 0.20, 0.50)
DRIFT = (0.02, 0.05, 0.08)
ARGO_FAILS, FLAGGER_FAILS = 4, 10

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rng = np.random.Generator


class Estimate(msgspec.Struct, frozen=True):
    """A mean or share with its standard error (Monte Carlo), and the median where it means something."""

    mean: float
    error: float
    median: float = 0.0

    @property
    def low(self) -> float:
        return self.mean - 3 * self.error

    @property
    def high(self) -> float:
        return self.mean + 3 * self.error


def mean_of(values: npt.NDArray[np.generic]) -> Estimate:
    numbers = values.astype(float)
    return Estimate(
        float(numbers.mean()), float(numbers.std() / sqrt(len(numbers))), float(np.median(numbers))
    )


def share_of(hits: int, runs: int) -> Estimate:
    """A share; its error is that of one hit more, so that none of 100 is not taken for certainty."""
    p = (hits + 1) / (runs + 2)
    return Estimate(hits / runs, sqrt(p * (1 - p) / runs))


# What any test could do


def divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two Bernoulli distributions, nats."""
    return (p * log(p / q) if p else 0.0) + ((1 - p) * log((1 - p) / (1 - q)) if p < 1 else 0.0)


def bound(p0: float, p1: float, weight: float) -> float:
    """Mean canary requests that no test with concurrent control can beat."""
    p = weight * p1 + (1 - weight) * p0
    growth = weight * divergence(p1, p) + (1 - weight) * divergence(p0, p)
    return weight * THRESHOLD / growth


def discordant(p0: float, p1: float, given: float) -> tuple[float, float]:
    """P(only the candidate fails), P(only the incumbent does), when P(candidate fails | incumbent fails) =
    given."""
    return p1 - given * p0, p0 - given * p0


def paired_bound(p0: float, p1: float, given: float) -> float:
    """Mean pairs that no test of discordant pairs can beat."""
    worse, better = discordant(p0, p1, given)
    return THRESHOLD / ((worse + better) * divergence(worse / (worse + better), 0.5))


# Our gates, through the functions that decide


def boundary(log_e: Callable[[int, int], float], most: int, threshold: float = THRESHOLD) -> Ints:
    """For n = 0 … most events, the least number of hits at which `log_e(n, hits)` alarms. It grows with n."""
    hits, found = 0, np.empty(most + 1, dtype=np.int64)
    for n in range(most + 1):
        while hits <= n and log_e(n, hits) < threshold:
            hits += 1
        found[n] = hits
    return found


def harm_boundary(weight: float, most: int, gates: int = 1) -> Ints:
    threshold = THRESHOLD + log(gates)
    return boundary(lambda n, hits: attribution.log_e_harm([Epoch(weight, n - hits, hits)]), most, threshold)


def pairs_boundary(most: int) -> Ints:
    """Over discordant pairs; the others change nothing at margin 0."""
    return boundary(lambda n, hits: paired.log_e_harm(paired.Pairs(worse=hits, better=n - hits)), most)


def first_crossing(hits: Ints, limits: Ints) -> Ints:
    """By run, the number of events at which cumulative `hits` [runs, events] first reach `limits`; 0 for
    never."""
    crossed = hits >= limits[1 : hits.shape[1] + 1]
    return np.where(crossed.any(1), crossed.argmax(1) + 1, 0)


def in_chunks(runs: int, size: int = 250) -> list[int]:
    return [size] * (runs // size) + ([runs % size] if runs % size else [])


def attribution_detection(
    p0: float, p1: float, weight: float, runs: int, rng: Rng, gates: int = 1
) -> Estimate:
    """Canary requests until the alarm of failure attribution, as one of so many gates."""
    rate = weight * p1 + (1 - weight) * p0
    most = int(8 * THRESHOLD / divergence(weight * p1 / rate, weight)) + 3000
    limits, found = harm_boundary(weight, most, gates), []
    for size in in_chunks(runs):
        hits = np.cumsum(rng.random((size, most)) < weight * p1 / rate, axis=1, dtype=np.int64)
        at = first_crossing(hits, limits)
        assert at.all(), "a run ended before its alarm: raise `most`"
        good = rng.negative_binomial(at, rate)
        found.append(hits[np.arange(size), at - 1] + rng.binomial(good, weight * (1 - p1) / (1 - rate)))
    return mean_of(np.concatenate(found))


def attribution_false_alarms(p0: float, weight: float, runs: int, rng: Rng) -> Estimate:
    most = int(REQUESTS * p0 + 6 * sqrt(REQUESTS * p0))
    limits, alarms = harm_boundary(weight, most), 0
    for size in in_chunks(runs):
        hits = np.cumsum(rng.random((size, most)) < weight, axis=1, dtype=np.int64)
        at = first_crossing(hits, limits)
        alarms += int(((at > 0) & (at <= rng.binomial(REQUESTS, p0, size))).sum())
    return share_of(alarms, runs)


def paired_detection(p0: float, p1: float, given: float, runs: int, rng: Rng) -> Estimate:
    """Pairs until the alarm."""
    worse, better = discordant(p0, p1, given)
    most = int(10 * paired_bound(p0, p1, given) * (worse + better)) + 500
    limits, found = pairs_boundary(most), []
    for size in in_chunks(runs):
        hits = np.cumsum(rng.random((size, most)) < worse / (worse + better), axis=1, dtype=np.int64)
        at = first_crossing(hits, limits)
        assert at.all(), "a run ended before its alarm: raise `most`"
        found.append(at + rng.negative_binomial(at, worse + better))
    return mean_of(np.concatenate(found))


def paired_false_alarms(p0: float, given: float, runs: int, rng: Rng) -> Estimate:
    """Among 100,000 pairs without any difference."""
    rate = sum(discordant(p0, p0, given))
    most = int(REQUESTS * rate + 6 * sqrt(REQUESTS * rate))
    limits, alarms = pairs_boundary(most), 0
    for size in in_chunks(runs):
        at = first_crossing(np.cumsum(rng.random((size, most)) < 0.5, axis=1, dtype=np.int64), limits)
        alarms += int(((at > 0) & (at <= rng.binomial(REQUESTS, rate, size))).sum())
    return share_of(alarms, runs)


def clean_pairs(margin: float) -> int:
    """Pairs without a failure in either arm until the promotion."""
    n = 1
    while paired.log_e_safe(paired.Pairs(same=n), margin) < THRESHOLD:
        n += 1
    return n


class Promotions(msgspec.Struct, frozen=True):
    """Share of runs promoted within 100,000 canary requests or pairs; how many it took (a look every 100)."""

    share: Estimate
    taken: Estimate


def paired_promotions(p0: float, p1: float, given: float, margin: float, runs: int, rng: Rng) -> Promotions:
    worse, better = discordant(p0, p1, given)
    taken = []
    for _ in range(runs):
        counts = np.cumsum(rng.multinomial(100, (worse, 1 - worse - better, better), 1000), axis=0).tolist()
        looks = (paired.log_e_safe(paired.Pairs(*row), margin) >= THRESHOLD for row in counts)
        taken.append(next((100 * n for n, proved in enumerate(looks, 1) if proved), 0))
    return _promotions(np.array(taken))


def promotions(p0: float, p1: float, weight: float, margin: float, runs: int, rng: Rng) -> Promotions:
    """By the weighted difference, without pairs."""
    taken = []
    for _ in range(runs):
        n = np.cumsum(rng.binomial(int(100 / weight), weight, 1000))
        x = np.cumsum(rng.binomial(np.diff(n, prepend=0), p1))
        m = np.arange(1, 1001) * int(100 / weight) - n
        y = np.cumsum(rng.binomial(np.diff(m, prepend=0), p0))
        for row in np.stack([m, n, y, x], axis=1).tolist():
            requests, bad = Epoch(weight, row[0], row[1]), Epoch(weight, row[2], row[3])
            if difference.log_e_safe([requests], [bad], margin) >= THRESHOLD:
                taken.append(row[1])
                break
        else:
            taken.append(0)
    return _promotions(np.array(taken))


def _promotions(taken: Ints) -> Promotions:
    done = taken[taken > 0]
    return Promotions(share_of(len(done), len(taken)), mean_of(done if len(done) else taken))


# Ramp and drift: the weight grows in three steps while the rates of both arms drift


class Ramp(msgspec.Struct, frozen=True):
    """Alarm or promotion shares of each gate."""

    attribution: Estimate
    msprt: Estimate
    z: Estimate


def ramp_counts(rates: Sequence[float], times: float, rng: Rng) -> list[tuple[Ints, Ints]]:
    """For each step, the requests by window and arm and the bad ones: [(requests [2], bad [windows, 2])]."""
    found = []
    each = REQUESTS // len(RAMP)
    windows = each // WINDOW
    for weight, p in zip(RAMP, rates, strict=True):
        candidate = rng.binomial(WINDOW, weight, windows)
        requests = np.stack([WINDOW - candidate, candidate], axis=1)
        found.append((requests, rng.binomial(requests, (p, min(1.0, p * times)))))
    return found


def ramp(rates: Sequence[float], times: float, runs: int, rng: Rng) -> Ramp:
    """Shares of runs with an alarm at some look; the candidate's rate is always `times` the incumbent's."""
    alarms = np.zeros(3, dtype=int)
    for _ in range(runs):
        steps = ramp_counts(rates, times, rng)
        bad = [step[1] for step in steps]
        events, weights = [], []
        for weight, counts in zip(RAMP, bad, strict=True):
            a, b = counts.sum(0)
            events.append(rng.permutation(np.repeat([0, 1], [a, b])))
            weights.append(np.full(a + b, weight))
        path = log_e_path(np.concatenate(events), np.concatenate(weights), attribution.HARM)
        ours = [Epoch(w, *counts.sum(0).tolist()) for w, counts in zip(RAMP, bad, strict=True)]
        assert abs(attribution.log_e_harm(ours) - path[-1]) < 1e-6, "the simulation and the gate disagree"
        n = np.cumsum(np.concatenate([step[0] for step in steps]), axis=0)
        x = np.cumsum(np.concatenate(bad), axis=0)
        alarms += [path.max() >= THRESHOLD, msprt(n, x).any(), z_test(n, x).any()]
    return Ramp(*(share_of(int(count), runs) for count in alarms))


def log_e_path(hits: Ints, thetas: Floats, tilts: Mixture) -> Floats:
    """ln E after each of the events of one run, at margin 1."""
    g = np.array(tilts.tilts)
    logs = np.cumsum(hits[:, None] * np.log(g) - np.log1p((g - 1) * thetas[:, None]), axis=0)
    found: Floats = np.logaddexp.reduce(logs + np.array(tilts.log_weights), axis=1)
    return found


# The usual gates


def msprt(n: Ints, x: Ints, spread: float = 0.02) -> Bools:
    """Alarms of the mixture sequential probability ratio test (Johari et al. 2017) on the difference of
    rates, at looks with n [looks, 2] requests and x bad ones of (incumbent, candidate); candidate worse
    only, prior normal with that spread."""
    p = (x + 0.5) / (n + 1)
    variance = (p * (1 - p) / (n + 1)).sum(1)
    gap = p[:, 1] - p[:, 0]
    shrunk = variance + spread**2
    log_ratio = 0.5 * np.log(variance / shrunk) + 0.5 * gap**2 * spread**2 / (variance * shrunk)
    found: Bools = (log_ratio >= THRESHOLD) & (gap > 0)
    return found


def z_test(n: Ints, x: Ints) -> Bools:
    """Alarms of a one-sided two-proportion z test at 1 %, as if each look were the only one."""
    pooled = (x.sum(1) + 0.5) / (n.sum(1) + 1)
    some = np.maximum(n, 1)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / some).sum(1))
    found: Bools = (x[:, 1] / some[:, 1] - x[:, 0] / some[:, 0]) / spread >= 2.3263
    return found


def windowed(
    p0: float, p1: float, runs: int, rng: Rng, decide: Callable[[Ints, Ints], Bools], windows: int
) -> Ints:
    """Canary requests until `decide` alarms, at w = 50 %, looking after each window; 0 for never."""
    found = np.zeros(runs, dtype=np.int64)
    n = np.cumsum(np.full((windows, 2), WINDOW), axis=0)
    for run in range(runs):
        alarms = decide(n, np.cumsum(rng.binomial(WINDOW, (p0, p1), (windows, 2)), axis=0))
        if alarms.any():
            found[run] = (alarms.argmax() + 1) * WINDOW
    return found


def failed_windows(p0: float, fails: int) -> Callable[[Ints, Ints], Bools]:
    """Alarm once so many windows of the candidate had a rate above the incumbent's true one."""

    def decide(n: Ints, x: Ints) -> Bools:
        found: Bools = np.cumsum(np.diff(x[:, 1], prepend=0) > p0 * WINDOW) >= fails
        return found

    return decide


def wald(p0: float, p1: float, truth: float, most: int, runs: int, rng: Rng) -> Ints:
    """Canary requests until Wald's test of p0 against p1, both known, alarms; 0 for never."""
    up, down = log(p1 / p0), log((1 - p1) / (1 - p0))
    found = []
    for size in in_chunks(runs, 50):
        # Only bad requests raise the sum: look there, after the run of good ones before each.
        bad = int(most * truth + 6 * sqrt(most * truth)) + 10
        at = np.cumsum(rng.geometric(truth, (size, bad)), axis=1)
        crossed = np.arange(1, bad + 1) * (up - down) + at * down >= THRESHOLD
        first = crossed.argmax(1)
        n = np.where(crossed.any(1), at[np.arange(size), first], 0)
        found.append(np.where(n <= most, n, 0))
    return np.concatenate(found)


# Sticky units


class Sticky(msgspec.Struct, frozen=True):
    """Shares of runs with an alarm."""

    by_request: Estimate
    first_failures: Estimate
    by_unit: Estimate
    paired: Estimate


def sticky(people: int, times: float, weight: float, runs: int, rng: Rng, given: float = 0.9) -> Sticky:
    """100,000 requests of `people` units with rates Beta(.5, 9.5), each in one arm throughout; the
    candidate's rates are `times` the incumbent's. Paired: the candidate's requests, answered by both
    versions."""
    most = int(REQUESTS * 0.05 * max(1.0, times) * 3)
    limits, pair_limits = harm_boundary(weight, most), pairs_boundary(most)
    alarms = np.zeros(4, dtype=int)
    each = REQUESTS // people
    for _ in range(runs):
        rates = rng.beta(0.5, 9.5, people)
        mine = rng.random(people) < weight
        # Arrival order of each unit's requests is random; its bad events are a random subset of them.
        bad = rng.binomial(each, np.minimum(1.0, np.where(mine, rates * times, rates)))
        events = rng.permutation(np.repeat(np.arange(people), bad))[:most]
        by_request = first_crossing(np.cumsum(mine[events])[None, :], limits)[0] > 0
        firsts = events[np.sort(np.unique(events, return_index=True)[1])]
        first = first_crossing(np.cumsum(mine[firsts])[None, :], limits)[0] > 0
        alarms += [by_request, first, alarms_by_unit(events, mine, weight), False]
        worse = rates[mine] * np.minimum(times - given, 1 / rates[mine] - 1)
        only_candidate = rng.binomial(each, np.clip(worse, 0, 1)).sum()
        only_incumbent = rng.binomial(each, rates[mine] * (1 - given)).sum()
        order = rng.permutation(np.repeat([1, 0], [only_candidate, only_incumbent]))[:most]
        alarms[3] += first_crossing(np.cumsum(order)[None, :], pair_limits)[0] > 0 if len(order) else 0
    return Sticky(*(share_of(int(count), runs) for count in alarms))


def alarms_by_unit(events: Ints, mine: Bools, weight: float) -> bool:
    """Whether the gate of units alarms at one of its looks."""
    seen = 0
    for n in [units.FIRST_LOOK << k for k in range(units.LOOKS)]:
        if n > len(events):
            break
        assert units.look_due(seen, n) is not None, "the simulation and the gate disagree on looks"
        seen = n
        log_e = units.log_e_harm([weight], histories(events[:n], mine))
        if log_e >= units.log_threshold_at_look(ALPHA):
            return True
    return False


def histories(events: Ints, mine: Bools) -> list[units.UnitHistory]:
    """Units with equal counts and arm as one entry."""
    bad = np.bincount(events, minlength=len(mine))
    found = []
    for arm in (False, True):
        for count, number in enumerate(np.bincount(bad[mine == arm]).tolist()):
            if number:
                found.append(units.UnitHistory((count,), (arm,), number))
    return found


# Latency


def latency_detection(
    slower: float, weight: float, runs: int, rng: Rng, level: float = 0.95, gates: int = 1
) -> Estimate:
    """Canary requests until exceedance of the incumbent's quantile alarms; lognormal, sigma .5."""
    z = {0.5: 0.0, 0.95: 1.644854, 0.99: 2.326348}[level]
    p1 = 0.5 * erfc((z - log(slower) / 0.5) / sqrt(2))
    return attribution_detection(1 - level, p1, weight, runs, rng, gates)


# Intervals, differences, ratios and means: how often they are ever wrong

LOOKS = 20


def looks(count: int) -> Ints:
    return np.unique(np.geomspace(20, count, LOOKS).astype(np.int64))


def rate_misses(rates: Sequence[float], runs: int, rng: Rng, alpha: float = 0.05) -> Estimate:
    """Share of runs in which the rate's interval ever misses the average so far; thirds with these rates."""
    p = np.repeat(rates, 1000)
    average = np.cumsum(p) / np.arange(1, len(p) + 1)
    misses = 0
    for _ in range(runs):
        bad = np.cumsum(rng.random(len(p)) < p)
        misses += any(
            not found.least <= average[n - 1] <= found.greatest
            for n in looks(len(p)).tolist()
            for found in [confidence.rate_interval(int(bad[n - 1]), n, alpha)]
        )
    return share_of(misses, runs)


class Wrong(msgspec.Struct, frozen=True):
    """Shares of runs in which a candidate exactly at the margin is wrongly promoted at some look."""

    weighted: Estimate
    two_intervals: Estimate


def wrong_promotions(
    rates: Sequence[float], weights: Sequence[float], excess: float, margin: float, runs: int, rng: Rng
) -> Wrong:
    """With a candidate worse by `excess`, at five looks in each step, by the weighted difference and by the
    naive rule (upper end of the candidate's interval less lower end of the incumbent's)."""
    wrong = np.zeros(2, dtype=int)
    each = REQUESTS // len(rates)
    size = each // 5
    for _ in range(runs):
        requests: list[Epoch] = []
        bad: list[Epoch] = []
        seen = np.zeros(2, dtype=bool)
        for weight, p in zip(weights, rates, strict=True):
            n, x = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
            for _ in range(each // size):
                candidate = rng.binomial(size, weight)
                now = np.array([size - candidate, candidate])
                n, x = n + now, x + rng.binomial(now, (p, p + excess))
                asked, worse = [*requests, Epoch(weight, *n.tolist())], [*bad, Epoch(weight, *x.tolist())]
                seen[0] |= difference.log_e_safe(asked, worse, margin) >= THRESHOLD
                a, b = (sum(e.incumbent for e in es) for es in (worse, asked))
                c, d = (sum(e.candidate for e in es) for es in (worse, asked))
                upper = confidence.rate_interval(c, d, ALPHA).greatest
                seen[1] |= upper - confidence.rate_interval(a, b, ALPHA).least <= margin
            requests, bad = asked, worse
        wrong += seen
    return Wrong(*(share_of(int(count), runs) for count in wrong))


def mismatch(weight: float, actual: float, requests: int, runs: int, rng: Rng) -> Estimate:
    """Share of runs in which the ratio gate ever alarms."""
    at = looks(requests)
    alarms = 0
    for _ in range(runs):
        mine = np.cumsum(rng.binomial(np.diff(at, prepend=0), actual))
        alarms += any(
            ratio.log_e_mismatch([Epoch(weight, int(n - c), int(c))]) >= THRESHOLD
            for n, c in zip(at, mine, strict=True)
        )
    return share_of(alarms, runs)


def bounded_alarms(lift: float, weight: float, requests: int, runs: int, rng: Rng) -> Estimate:
    """Share of runs in which the gate of means ever alarms; values Beta(.4, 1.6), the candidate's times 1 +
    lift."""
    alarms = 0
    at = looks(requests)
    for _ in range(runs):
        mine = rng.random(requests) < weight
        x = np.minimum(1.0, rng.beta(0.4, 1.6, requests) * np.where(mine, 1 + lift, 1.0))
        sums = np.cumsum(np.stack([~mine, ~mine * x, ~mine * x * x, mine, mine * x, mine * x * x]), axis=1)[
            :, at - 1
        ].T.tolist()
        alarms += any(
            bounded.log_e_harm(
                [bounded.MeanEpoch(weight, 0.2, bounded.Moments(*row[:3]), bounded.Moments(*row[3:]))]
            )
            >= THRESHOLD
            for row in sums
        )
    return share_of(alarms, runs)


# The report


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.2f} +- {100 * estimate.error:.2f} %"


def _report(runs: int, rng: Rng) -> None:
    few = max(50, runs // 10)
    print("canary requests to rollback: median (mean; mean / bound), and false alarms per 100,000 requests")
    cells = "  ".join(f"{f'{100 * a:g} -> {100 * b:g} %':>26}" for a, b in CELLS)
    print(f"{'':34}{cells}  false alarms")
    for weight in (0.05, 0.5):
        row = [attribution_detection(*cell, weight, runs, rng) for cell in CELLS]
        text = [_cell(got, bound(*cell, weight)) for got, cell in zip(row, CELLS, strict=True)]
        alarms = _percent(attribution_false_alarms(0.05, weight, runs, rng))
        print(f"{f'attribution, w = {weight:.0%}':34}{'  '.join(text)}  {alarms}")
    for given in (0.9, 0.5):
        row = [paired_detection(*cell, given, runs, rng) for cell in CELLS]
        text = [_cell(got, paired_bound(*cell, given)) for got, cell in zip(row, CELLS, strict=True)]
        alarms = _percent(paired_false_alarms(0.05, given, runs, rng))
        print(f"{f'paired, correlation {given}':34}{'  '.join(text)}  {alarms}")
    row = [mean_of(wald(*cell, cell[1], 10**6, runs, rng)) for cell in CELLS]
    name = "Wald, both rates known"
    false = int((wald(0.05, 0.06, 0.05, REQUESTS, few, rng) > 0).sum())
    print(f"{name:34}{'  '.join(_cell(got) for got in row)}  {_percent(share_of(false, few))}")
    rules: dict[str, Callable[[float], Callable[[Ints, Ints], Bools]]] = {
        "mSPRT, w = 50 %": lambda p0: msprt,
        "z at 1 %, peeking, w = 50 %": lambda p0: z_test,
        f"Argo-like, {ARGO_FAILS} windows of 100": lambda p0: failed_windows(p0, ARGO_FAILS),
        f"Flagger-like, {FLAGGER_FAILS} windows of 100": lambda p0: failed_windows(p0, FLAGGER_FAILS),
    }
    for name, rule in rules.items():
        row = [mean_of(windowed(*cell, few, rng, rule(cell[0]), 800)) for cell in CELLS]
        false = int((windowed(0.05, 0.05, few, rng, rule(0.05), REQUESTS // WINDOW // 2) > 0).sum())
        print(f"{name:34}{'  '.join(_cell(got) for got in row)}  {_percent(share_of(false, few))}")
    print("\nramp 5 -> 20 -> 50 % while both arms drift 2 -> 5 -> 8 %: shares of runs with an alarm")
    for times in (1.0, 1.2, 1.5):
        got = ramp(DRIFT, times, few, rng)
        print(
            f"  candidate x {times}: attribution {_percent(got.attribution)}, mSPRT {_percent(got.msprt)}, "
            f"z {_percent(got.z)}"
        )
    print("\nsticky units, 100,000 requests, w = 5 %, rates Beta(.5, 9.5): shares of runs with an alarm")
    for people in (200, 1000, 5000):
        for times in (1.0, 2.0):
            s = sticky(people, times, 0.05, few, rng)
            print(
                f"  {people} units, candidate x {times}: by request {_percent(s.by_request)}, first failures "
                f"{_percent(s.first_failures)}, by unit {_percent(s.by_unit)}, paired {_percent(s.paired)}"
            )
    print("\nlatency, lognormal sigma .5, w = 5 %: canary requests to rollback, median (mean)")
    for slower in (3.0, 1.5, 1.2):
        texts = []
        for level in (0.5, 0.95, 0.99):
            late = latency_detection(slower, 0.05, runs, rng, level)
            texts.append(f"p{100 * level:g}: {late.median:.0f} ({late.mean:.1f})")
        print(f"  {slower} times slower: {', '.join(texts)}")
    late = latency_detection(3.0, 0.05, runs, rng, gates=4)
    print(f"  3 times slower, p95 as one of four gates: {late.median:.0f} ({late.mean:.1f})")
    print(f"\nclean pairs until promotion at margin .5 pp: {clean_pairs(0.005)}")
    print("promotion at margin .5 pp within 100,000: share; canary requests or pairs, median (mean)")
    for p0, p1 in ((0.0, 0.0), (0.001, 0.001), (0.02, 0.02), (0.02, 0.01), (0.02, 0.025)):
        texts = []
        for name, done in (
            ("w = 5 %", promotions(p0, p1, 0.05, 0.005, few // 4, rng)),
            ("w = 50 %", promotions(p0, p1, 0.5, 0.005, few // 4, rng)),
            ("paired, .9", paired_promotions(p0, p1, min(0.9, p1 / p0 if p0 else 0), 0.005, few // 4, rng)),
        ):
            texts.append(f"{name}: {done.share.mean:.0%}, {done.taken.median:.0f} ({done.taken.mean:.0f})")
        print(f"  {100 * p0:g} -> {100 * p1:g} %: {'; '.join(texts)}")
    print(
        "wrong promotions, ever, of a candidate as bad as the margin (.5 pp), while weights and rates change"
    )
    for rates, weights in (((0.02, 0.05, 0.08), (0.5, 0.2, 0.05)), ((0.08, 0.05, 0.02), RAMP)):
        wrong = wrong_promotions(rates, weights, 0.005, 0.005, few // 4, rng)
        print(
            f"  rates {rates}, weights {weights}: weighted {_percent(wrong.weighted)}, "
            f"two intervals {_percent(wrong.two_intervals)}"
        )
    print("\nintervals at 95 % that ever miss the average so far")
    for rates in ((0.05, 0.05, 0.05), (0.02, 0.3, 0.1)):
        print(f"  rate {rates}: {_percent(rate_misses(rates, few, rng))}")
    print("\nsample ratio, 20,000 requests, w = 10 %: alarms at 10 %, 11 %")
    print(f"  {', '.join(_percent(mismatch(0.1, actual, 20_000, few, rng)) for actual in (0.1, 0.11))}")
    print("bounded means, 20,000 requests, w = 50 %: alarms at lifts of 0, 5, 10 %")
    print(f"  {', '.join(_percent(bounded_alarms(lift, 0.5, 20_000, few, rng)) for lift in (0, 0.05, 0.1))}")


def _cell(got: Estimate, least: float | None = None) -> str:
    more = "" if least is None else f"; {got.mean / least:.2f}"
    return f"{f'{got.median:.0f} ({got.mean:.0f}{more})':>26}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.bench_evidence", description=__doc__)
    arguments.add_argument("--runs", type=int, default=4000, help="runs of each fast simulation (4000)")
    arguments.add_argument("--seed", type=int, default=1, help="of the random numbers (1)")
    given = arguments.parse_args(argv)
    began_s = time.monotonic()
    _report(given.runs, np.random.default_rng(given.seed))
    epochs = [Epoch(weight, 1000, 60) for weight in (0.01, 0.05, 0.1, 0.2, 0.5)]
    at_s = time.perf_counter()
    for _ in range(2000):
        attribution.log_e_harm(epochs)
    print(f"\none decision over 5 epochs: {(time.perf_counter() - at_s) / 2000 * 1e6:.1f} us")
    print(f"{given.runs} runs, seed {given.seed}, {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
