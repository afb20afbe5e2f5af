"""What whole release rules decide, how soon, and what it costs: ours beside the usual ones, in the same
simulated traffic.

    python -m benchmarks.bench_rules [--runs 16] [--seed 1] [--json] [--svg FILE]

100 requests a second, of which the incumbent fails 2 %; harm budget 50, margin half a point, alpha 1 %.
"Extra failures" are what clients of the candidate saw beyond the incumbent's rate until the decision was in
force; what a version does that was promoted wrongly is not in it. "Held": waits for a person. Rules:

- ours: the real plan (`tests/rollout/canaries.py`) with its defaults; without shadow and shield; without
  copies. The others' failures coincide with the incumbent's or not: nothing of that matters to them.
- Argo Rollouts, the canary of its documentation (docs/features/analysis.md): 20, 40, 60, 80 % for 10 minutes
  each; a query every 5 minutes, failureLimit 3, so the fourth failed one aborts. In its favour: the query
  sees the candidate alone, and begins with the first step in place of the third.
- Flagger, the canary of its documentation (usage/how-it-works.md): a check a minute; 5 % more after a good
  one, up to 50 %; rollback at the tenth failed one.
- Both want a threshold. Those of the examples (5 and 1 %) do not suit an incumbent at 2 %: they get twice
  the incumbent's rate at the beginning of the trial, which they are told.
- mSPRT (Johari et al. 2017) at half of the traffic, a look each second; what it has not stopped after 100,000
  requests is promoted.
- z: as many requests as show half a point at 1 % with a power of 90 %, one test at the end.

"Drift": both rates go 2, 5, 8 % in three steps over the time that the rule takes, the traffic doubles in the
middle, and the share of mSPRT and z is 5, 20, 50 % (the others have a ramp of their own). "Users": rates
Beta(.5, 9.5), 5 % on average, 1,000 users, each of whom always meets the same version; ours gets 5 minutes
there, with a look each second.

Past 400 lines because rules and tables go by the same cases; the picture is apart.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import ceil, sqrt
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.bench_evidence import ALPHA, DRIFT, RAMP, REQUESTS, Estimate, msprt, share_of, z_test
from benchmarks.rules_picture import svg
from interlock.core.policy import Policy
from interlock.registry.rows import ReleaseState
from tests.rollout.canaries import START_S, UNIT_SHAPE, Canary, Rate, constant, decisions_only

P0 = 0.02
MARGIN = 0.005
RATES = (0.02, 0.025, 0.03, 0.05, 0.12, 0.52)
PER_S = 100.0
PEOPLE = 1000
MOST_S = 3600.0
PROMOTED, ROLLED_BACK, HELD = "promoted", "rolled back", "held"

Rng = np.random.Generator
Ints = npt.NDArray[np.int64]


class Case(msgspec.Struct, frozen=True):
    """A trial: the incumbent's rates, one after another; how much more often the candidate fails; by what
    the traffic has grown in its second half; how many users stick to a version (0: none do)."""

    rates: tuple[float, ...] = (P0,)
    excess: float = 0.0
    growth: float = 1.0
    people: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """How one trial ended."""

    decision: str
    extra: float
    requests: int
    seconds: float


CASES: Mapping[str, Case] = {f"{100 * p1:g} %": Case(excess=p1 - P0) for p1 in RATES}
SAME = f"{100 * P0:g} %"
FALSE_ALARMS: Mapping[str, Case] = {
    "drift": Case(rates=DRIFT, growth=2.0),
    "users": Case(rates=(0.05,), people=PEOPLE),
}
Rule = Callable[[Case, Rng], Outcome]


class Traffic:
    """Requests of one trial, by arm. `whole_s`: the time over which rates and traffic change."""

    def __init__(self, case: Case, whole_s: float, rng: Rng) -> None:
        self._case, self._whole_s, self._rng = case, whole_s, rng
        self._rates = rng.beta(*UNIT_SHAPE, case.people)
        self._places = rng.random(case.people)

    def rate(self, now_s: float) -> float:
        """The incumbent's."""
        rates = self._case.rates
        return rates[min(int(now_s / self._whole_s * len(rates)), len(rates) - 1)]

    def per_s(self, now_s: float) -> float:
        return PER_S * (self._case.growth if now_s >= self._whole_s / 2 else 1.0)

    def serve(self, now_s: float, seconds: float, weight: float) -> tuple[Ints, Ints, float]:
        """Requests and bad ones of (incumbent, candidate), and the bad ones that the incumbent would have had
        in the candidate's place on average."""
        rng, case = self._rng, self._case
        n = int(rng.poisson(self.per_s(now_s) * seconds))
        if not case.people:
            rates = self.rate(now_s), self.rate(now_s) + case.excess
            mine = int(rng.binomial(n, weight))
            asked = np.array([n - mine, mine])
            return asked, rng.binomial(asked, rates), mine * rates[0]
        each = rng.multinomial(n, np.full(case.people, 1 / case.people))
        is_mine = self._places < weight
        bad = rng.binomial(each, self._rates)
        asked = np.array([each[~is_mine].sum(), each[is_mine].sum()])
        due = float((each * self._rates)[is_mine].sum())
        return asked, np.array([bad[~is_mine].sum(), bad[is_mine].sum()]), due


# The rules of others


def windows(
    steps: Callable[[int, int], float | None], interval_s: float, fails: int, case: Case, rng: Rng
) -> Outcome:
    """A check every `interval_s`; `steps(passed, failed)` is the share until the next one, None for
    promotion. The check that makes it `fails` failed ones ends it."""
    nominal = sum(1 for k in range(10_000) if steps(k, 0) is not None)
    traffic = Traffic(case, nominal * interval_s, rng)
    limit = 2 * case.rates[0]
    passed, failed, extra, requests, now_s = 0, 0, 0.0, 0, 0.0
    while (weight := steps(passed, failed)) is not None:
        asked, bad, due = traffic.serve(now_s, interval_s, weight)
        now_s += interval_s
        extra += float(bad[1]) - due
        requests += int(asked[1])
        if bad[1] > limit * max(asked[1], 1):
            failed += 1
            if failed == fails:
                return Outcome(ROLLED_BACK, extra, requests, now_s)
        else:
            passed += 1
    return Outcome(PROMOTED, extra, requests, now_s)


ARGO_WEIGHTS, ARGO_CHECKS, ARGO_INTERVAL_S, ARGO_FAILS = (0.2, 0.4, 0.6, 0.8), 2, 300.0, 4
FLAGGER_STEP, FLAGGER_MOST, FLAGGER_INTERVAL_S, FLAGGER_FAILS = 0.05, 0.5, 60.0, 10


def argo_share(passed: int, failed: int) -> float | None:
    """The timetable goes on whatever the checks say, until there are too many failed ones.

    >>> [argo_share(0, n) for n in (0, 1, 2, 7, 8)]
    [0.2, 0.2, 0.4, 0.8, None]
    """
    step = (passed + failed) // ARGO_CHECKS
    return ARGO_WEIGHTS[step] if step < len(ARGO_WEIGHTS) else None


def flagger_share(passed: int, failed: int) -> float | None:
    """Each good check is a step; a failed one stays.

    >>> [flagger_share(n, 3) for n in (0, 9, 10)]
    [0.05, 0.5, None]
    """
    share = round(FLAGGER_STEP * (passed + 1), 9)
    return share if share <= FLAGGER_MOST else None


def sample_size(p0: float, gap: float, quantiles: float = 2.3263 + 1.2816) -> int:
    """Requests of each arm for a one-sided z test at 1 % with a power of 90 %.

    >>> sample_size(0.02, 0.005)
    22897
    """
    p1 = p0 + gap
    return ceil(quantiles**2 * (p0 * (1 - p0) + p1 * (1 - p1)) / gap**2)


Looks = Callable[[Ints, Ints], npt.NDArray[np.bool_]]


def at_half(alarms: Looks, whole_s: float, at_end: bool, case: Case, rng: Rng) -> Outcome:
    """A share of a half (or the ramp, where rates drift) for `whole_s`; `alarms` at each look of a second, or
    only at the end."""
    traffic = Traffic(case, whole_s, rng)
    weights = RAMP if len(case.rates) > 1 else (0.5,)
    asked, bad, due = [], [], []
    for second in range(int(whole_s)):
        weight = weights[int(second / whole_s * len(weights))]
        one = traffic.serve(float(second), 1.0, weight)
        asked.append(one[0])
        bad.append(one[1])
        due.append(one[2])
    n, x = np.cumsum(asked, axis=0), np.cumsum(bad, axis=0)
    stops = alarms(n[-1:], x[-1:]) if at_end else alarms(n, x)
    last = int(stops.argmax()) if stops.any() and not at_end else len(n) - 1
    extra = float(x[last, 1]) - float(np.sum(due[: last + 1]))
    return Outcome(ROLLED_BACK if stops.any() else PROMOTED, extra, int(n[last, 1]), last + 1.0)


# Ours

DEFAULT = Policy(margin=MARGIN, alpha=ALPHA, shadow=1.0, reverse=1.0, shielded=True, most_disagreement=0.2)
BARE = msgspec.structs.replace(DEFAULT, shadow=0.0, shielded=False, most_disagreement=1.0)
PLAIN = msgspec.structs.replace(BARE, reverse=0.0)
OURS_S = 75.0
"""About how long ours takes with a good candidate: drift is as fast as that."""


def ours(policy: Policy, given: float, case: Case, rng: Rng) -> Outcome:
    """A decision is in force half a second after the look that made it."""
    traffic = Traffic(case, OURS_S, rng)
    if case.people:
        policy = msgspec.structs.replace(policy, unit="header")

    def since(of: Rate, more: float = 0.0) -> Rate:
        return lambda now_s: of(now_s - START_S) + more

    canary = Canary(
        since(traffic.rate),
        since(traffic.rate, case.excess),
        since(traffic.per_s),
        policy=policy,
        given=given,
        units=case.people,
        tick_s=1.0 if case.people else 0.5,
    )
    return played(canary, rng, MOST_S / 12 if case.people else MOST_S)


def played(canary: Canary, rng: Rng, most_s: float) -> Outcome:
    with decisions_only():
        ended = canary.run(rng, most_s)
    decisions = {ReleaseState.SWITCHING: PROMOTED, ReleaseState.ROLLING_BACK: ROLLED_BACK}
    return Outcome(decisions.get(ended.state, HELD), ended.harm, ended.requests, ended.spent_s)


SAMPLE = sample_size(P0, MARGIN)
RULES: Mapping[str, Rule] = {
    "ours": partial(ours, DEFAULT, 0.9),
    "ours, no shadow or shield, .9": partial(ours, BARE, 0.9),
    "ours, no shadow or shield, .5": partial(ours, BARE, 0.5),
    "ours, no copies": partial(ours, PLAIN, 0.9),
    "Argo Rollouts": partial(windows, argo_share, ARGO_INTERVAL_S, ARGO_FAILS),
    "Flagger": partial(windows, flagger_share, FLAGGER_INTERVAL_S, FLAGGER_FAILS),
    "mSPRT at 50 %": partial(at_half, msprt, REQUESTS / PER_S, False),
    "z at 50 %, fixed sample": partial(at_half, z_test, 2 * SAMPLE / PER_S, True),
}
OURS = tuple(name for name in RULES if name.startswith("ours"))
NOTHING = constant(0.0)
DETAILS: Mapping[str, Canary] = {
    "no bad answers in either": Canary(NOTHING, NOTHING, policy=DEFAULT),
    "2 % (the same)": Canary(constant(P0), constant(P0), policy=DEFAULT),
    **{f"{100 * p1:g} %": Canary(constant(P0), constant(p1), policy=DEFAULT) for p1 in RATES[1:]},
    "labels differ in 60 %": Canary(NOTHING, NOTHING, policy=DEFAULT, disagreement=0.6),
    "NaN": Canary(NOTHING, NOTHING, policy=DEFAULT, unsound=1.0, disagreement=1.0),
    "1.5 times slower, 0 %": Canary(NOTHING, NOTHING, policy=DEFAULT, slower=1.5),
    "3 times slower, 0 %": Canary(NOTHING, NOTHING, policy=DEFAULT, slower=3.0),
}
"""The default, by what is wrong with the candidate."""


# The report


class Row(msgspec.Struct, frozen=True):
    """What became of the runs of one rule in one case. Shares of runs; `extra` failures: their mean (with
    its standard error), 90 % quantile and most; `requests` of the candidate and `seconds`: medians."""

    runs: int
    promoted: float
    rolled_back: float
    held: float
    extra: float
    extra_error: float
    extra_90: float
    extra_most: float
    requests: float
    seconds: float


def row(found: Sequence[Outcome]) -> Row:
    extra = np.array([one.extra for one in found])
    promoted, back, held = (
        sum(one.decision == what for one in found) / len(found) for what in (PROMOTED, ROLLED_BACK, HELD)
    )
    return Row(
        len(found),
        promoted,
        back,
        held,
        float(extra.mean()),
        float(extra.std() / sqrt(len(extra))),
        float(np.quantile(extra, 0.9)),
        float(extra.max()),
        float(np.median([one.requests for one in found])),
        float(np.median([one.seconds for one in found])),
    )


def play(job: tuple[str, str, int, int]) -> Row:
    """One cell, by the names of its rule and case ("" for the rows of the default); a process of its own may
    do it, and the seed is the cell's own, so that figures do not depend on the order."""
    rule, case, runs, seed = job
    rng = np.random.default_rng([seed, *f"{rule}/{case}".encode()])
    if not rule:
        return row([played(DETAILS[case], rng, MOST_S) for _ in range(runs)])
    what = {**CASES, **FALSE_ALARMS}[case]
    return row([RULES[rule](what, rng) for _ in range(runs)])


def measure(runs: int, seed: int, processes: int | None = None) -> dict[tuple[str, str], Row]:
    """All cells, by rule and case. The rules of others are cheap, and run ten times as often."""
    jobs = [
        (rule, case, runs if rule in OURS else 10 * runs, seed)
        for case in (*CASES, *FALSE_ALARMS)
        for rule in RULES
    ] + [("", case, runs, seed) for case in DETAILS]
    with ProcessPoolExecutor(processes) as pool:
        return {job[:2]: found for job, found in zip(jobs, pool.map(play, jobs), strict=True)}


def tables(found: Mapping[tuple[str, str], Row]) -> str:
    """The report, as Markdown."""
    return "\n\n".join((_outcomes(found), _false_alarms(found), _details(found)))


def _outcomes(found: Mapping[tuple[str, str], Row]) -> str:
    head = f"| rule | {' | '.join(CASES)} |\n|---|{'---|' * len(CASES)}"
    lines = []
    for rule in RULES:
        cells = []
        for case in CASES:
            one = found[rule, case]
            shares = "/".join(f"{100 * x:.0f}" for x in (one.promoted, one.rolled_back, one.held))
            cells.append(f"{shares}; {_whole(one.extra)} ({_whole(one.extra_90)}); {_duration(one.seconds)}")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join((head, *lines))


def _false_alarms(found: Mapping[tuple[str, str], Row]) -> str:
    head = "| rule | constant | ramp and drift | users | promoted: constant | ramp and drift | users |"
    lines = []
    for rule in RULES:
        rows = [found[rule, case] for case in (SAME, *FALSE_ALARMS)]
        alarms = [_percent(share_of(round(one.rolled_back * one.runs), one.runs)) for one in rows]
        promoted = [f"{100 * one.promoted:.0f} %" for one in rows]
        lines.append(f"| {rule} | {' | '.join((*alarms, *promoted))} |")
    return "\n".join((head, "|---|---|---|---|---|---|---|", *lines))


def _details(found: Mapping[tuple[str, str], Row]) -> str:
    head = (
        "| candidate | promoted | paused | rolled back | its requests, median | more failed, mean (most) "
        "| took, median |\n|---|---|---|---|---|---|---|"
    )
    lines = []
    for case in DETAILS:
        one = found["", case]
        counts = " | ".join(str(round(x * one.runs)) for x in (one.promoted, one.held, one.rolled_back))
        harm = f"{_whole(one.extra)} ({_whole(one.extra_most)})"
        lines.append(f"| {case} | {counts} | {one.requests:,.0f} | {harm} | {_duration(one.seconds)} |")
    return "\n".join((head, *lines))


def _whole(number: float) -> str:
    return f"{round(number):,}"


def _percent(share: Estimate) -> str:
    return f"{100 * share.mean:.1f} +- {100 * share.error:.1f} %"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def picture(extra: Mapping[str, Sequence[float]]) -> str:
    """Mean extra failures of each rule, in the order of `RATES`[1:], drawn."""
    return svg(extra, RATES[1:], P0, OURS)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_rules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--runs", type=int, default=16, help="of each of our cells; others ten times (16)")
    arguments.add_argument("--seed", type=int, default=1, help="of the random numbers (1)")
    arguments.add_argument("--json", action="store_true", help="print all figures as JSON")
    arguments.add_argument("--svg", type=Path, help="draw extra failures by error rate into this file")
    given = arguments.parse_args(argv)
    found = measure(given.runs, given.seed)
    if given.svg is not None:
        cases = list(CASES)[1:]
        given.svg.write_text(picture({rule: [found[rule, case].extra for case in cases] for rule in RULES}))
    if given.json:
        rows = [{"rule": r, "case": c, **msgspec.to_builtins(one)} for (r, c), one in found.items()]
        print(json.dumps({"runs": given.runs, "seed": given.seed, "rows": rows}, indent=1))
    else:
        print("promoted/rolled back/held %; extra failures, mean (90 %); time to the decision, median\n")
        print(tables(found))
        print(f"\n{given.runs} runs, seed {given.seed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
