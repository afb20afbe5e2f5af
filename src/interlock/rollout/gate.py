"""Judges a candidate by the counts of both arms: which gates stop it, which let it through, what is still
needed.

Alarm gates (errors; latency above p50, p95, p99 and the user's objective) share alpha by a union bound: one
that reaches ln(K / alpha) rolls back. Promotion needs every promotion gate at ln(1 / alpha): errors within
the margin, latency within the margin at the p95 or the objective. A sample-ratio mismatch holds, and so
do a projected utilisation above its limit and what `memory_gate.py` finds, which are estimates and no tests.
What each null hypothesis is, and what is assumed: docs/explanation/evidence.md. Where both versions run the
same requests, those of `paired_gates.py` join them, and the proof about errors is theirs.
"""

from collections.abc import Callable, Sequence
from math import log

import msgspec

from interlock.core.policy import Policy
from interlock.core.verdict import Verdict
from interlock.evidence import attribution, difference, paired, ratio
from interlock.evidence.combine import requests_needed
from interlock.evidence.epochs import Epoch
from interlock.evidence.exceedance import LEVELS
from interlock.evidence.mixture import last_rejected, log_threshold
from interlock.rollout import memory_gate, metrics, paired_gates
from interlock.rollout.judgement import BUDGET_ALPHA, Gate, Judgement, Kind, alarm, as_log10
from interlock.rollout.memory import MemoryView
from interlock.rollout.metrics import MetricTally
from interlock.rollout.tally import CANDIDATE, OBJECTIVE, ArmTally, EpochTally

MISMATCH_SHARE = 0.1
"""Of alpha, for the sample ratio: it is the same dispatch that every release of every model tests anew."""
PROVED_LEVEL = 0.95
"""The latency quantile that must be proved where the user names no objective."""
MOST_EXCESS = {OBJECTIVE: 0.005, 0.5: 0.02, 0.95: 0.01}
"""So much more often than the incumbent a candidate within the margin may exceed its cut, by level."""
LEAST_BATCHES = 30
"""Of the candidate, before its utilisation is projected."""
_END = 1.0 - 1e-9


class Load(msgspec.Struct, frozen=True):
    """What a projection of the utilisation takes: the model's requests a second, how many places compute it
    side by side, and the seconds a batch of so many rows took at registration."""

    rate_per_s: float = 0.0
    places: int = 1
    batch_s: dict[int, float] = {}


def judge(
    epochs: Sequence[EpochTally],
    policy: Policy,
    load: Load | None = None,
    ratio_since: int = 0,
    answers: bool = True,
    scored: Sequence[MetricTally] = (),
    arm: int = CANDIDATE,
    memory: MemoryView | None = None,
) -> Judgement:
    """All gates over all epochs. `load` None: the utilisation is not projected. `ratio_since`: epochs up to
    this number are no evidence of a mismatch any more, since a person has looked at it. Not `answers`: a
    shadow, of which only pairs tell. `scored`: what feedback says, of the candidate whose arm has this
    index. `memory` None: it is not known; else nothing is proved before it has been judged."""
    bad = [Epoch(e.weight, e.incumbent.bad, e.candidate.bad) for e in epochs]
    threshold = log_threshold(policy.alpha, _number_of_alarms(policy))
    gates = [*_alarms(epochs, bad, policy, threshold), *paired_gates.alarms(epochs, policy, threshold)]
    if answers:
        gates += _holds(epochs, policy, load, ratio_since)
        proofs = [] if policy.arms else _proofs(epochs, policy)
        for gate in _metric_gates(epochs, policy, scored, threshold, arm):
            (proofs if gate.kind is Kind.PROMOTION else gates).append(gate)
    else:
        gates.append(paired_gates.slow_shadow(epochs, policy))
        proofs = [paired_gates.copies_proof(epochs, policy), paired_gates.compute_proof(epochs, policy)]
    watched = []
    if memory is not None and "memory" in policy.guardrails:
        watched.append(memory_gate.judge(memory, policy))
    gates += watched
    pairs = paired_gates.total(epochs)
    stops = [gate.message for gate in gates if gate.kind is Kind.ALARM and gate.verdict is Verdict.FAIL]
    holds = [gate.message for gate in gates if gate.kind is Kind.HOLD and gate.verdict is Verdict.FAIL]
    needed = [gate.requests_needed for gate in proofs]
    known = [number for number in needed if number is not None]
    return Judgement(
        gates=(*gates, *proofs),
        rollback="; ".join(stops),
        hold="; ".join(holds),
        proved=bool(proofs) and all(gate.verdict is Verdict.PASS for gate in (*proofs, *watched)),
        incumbent_requests=sum(e.incumbent.requests for e in epochs),
        incumbent_bad=sum(e.incumbent.bad for e in epochs),
        candidate_requests=sum(e.candidate.requests for e in epochs),
        candidate_bad=sum(e.candidate.bad for e in epochs),
        excess_most=excess_most(epochs, policy, BUDGET_ALPHA),
        harm=float(pairs.unshielded) if policy.shielded else _harm(epochs),
        requests_needed=max(known) if known and len(known) == len(needed) else None,
        pairs=pairs,
    )


def _metric_gates(
    epochs: Sequence[EpochTally], policy: Policy, scored: Sequence[MetricTally], threshold: float, arm: int
) -> list[Gate]:
    weights = {epoch.number: epoch.weight for epoch in epochs}
    of = {tally.name: tally for tally in scored}
    found: list[Gate] = []
    for metric in policy.metrics:
        mine = of.get(metric.name, MetricTally(metric.name))
        found += metrics.gates(metric, mine, weights, threshold, log_threshold(policy.alpha), arm)
        if policy.arms and metric is policy.metrics[0]:
            found.append(metrics.better(metric, mine, weights, policy.alpha, arm))
    return found


def excess_most(epochs: Sequence[EpochTally], policy: Policy, alpha: float) -> float:
    """The upper end of the confidence sequence of the excess of bad answers, in [-1, 1]: what a ramp goes
    by."""
    found = last_rejected(_log_e_within(epochs, policy)(0.0), _END, -_END, log_threshold(alpha))
    return 1.0 if found is None else found


def _log_e_within(
    epochs: Sequence[EpochTally], policy: Policy
) -> Callable[[float], Callable[[float], float]]:
    """ln E against "the candidate's answers are bad at least `margin` more often": by how many more requests
    of the model have come, at the present weight and rates, and then by the margin.

    Of two e-processes, of counts by arm and of pairs, half of each is bet on: the greater one counts, less
    ln 2. Where units stick to an arm, counts prove nothing; without pairs, there are only counts.
    """
    asked = [Epoch(e.weight, e.incumbent.requests, e.candidate.requests) for e in epochs]
    bad = [Epoch(e.weight, e.incumbent.bad, e.candidate.bad) for e in epochs]
    pairs = paired_gates.failures(paired_gates.served(epochs))
    weight = epochs[-1].weight if epochs else 0.0

    def by_arm(more: float) -> Callable[[float], float]:
        return difference.safe_by_margin(*_after(asked, bad, weight, more))

    def by_pair(more: float) -> Callable[[float], float]:
        return paired.safe_by_margin(paired_gates.grown(pairs, more * weight * (policy.reverse or 0.0)))

    def by_either(more: float) -> Callable[[float], float]:
        arm, pair = by_arm(more), by_pair(more)
        return lambda margin: max(arm(margin), pair(margin)) - log(2.0)

    if not policy.reverse:
        return by_arm
    if policy.is_sticky:
        return by_pair
    return by_either


def level_name(level: float) -> str:
    """How people call the latency gate of a level.

    >>> level_name(0.95), level_name(OBJECTIVE)
    ('latency p95', 'latency objective')
    """
    return "latency objective" if level == OBJECTIVE else f"latency p{level * 100:g}"


def _levels(policy: Policy) -> tuple[float, ...]:
    return (*LEVELS, *([OBJECTIVE] if policy.objective_s is not None else []))


def _number_of_alarms(policy: Policy) -> int:
    return 1 + len(_levels(policy)) + len(policy.metrics) + paired_gates.number_of_alarms(policy)


def _alarms(
    epochs: Sequence[EpochTally], bad: Sequence[Epoch], policy: Policy, threshold: float
) -> list[Gate]:
    found = []
    if "errors" in policy.guardrails and not (policy.is_sticky and policy.reverse):
        words = f"bad answers: {_versus(epochs, _errors)}"
        found.append(alarm("errors", attribution.log_e_harm(bad), threshold, words))
    for level in _levels(policy) if "latency" in policy.guardrails else ():
        at = [(e, k) for e in epochs for k, cut in enumerate(e.cuts) if cut.level == level]
        if at:
            slow = [Epoch(e.weight, e.incumbent.slow[k], e.candidate.slow[k]) for e, k in at]
            cut = at[-1][0].cuts[at[-1][1]]
            words = (
                f"answers above {cut.incumbent_s * 1e3:.3g} ms "
                f"({cut.candidate_s * 1e3:.3g} ms for the candidate): "
                + _versus([e for e, _ in at], _slower_than([k for _, k in at]))
            )
            found.append(alarm(level_name(level), attribution.log_e_harm(slow), threshold, words))
    return found


def _holds(epochs: Sequence[EpochTally], policy: Policy, load: Load | None, ratio_since: int) -> list[Gate]:
    found = []
    if not policy.is_sticky:  # sticky units come in lumps: requests then say nothing about the shares
        sent = [Epoch(e.weight, e.incumbent.sent, e.candidate.sent) for e in epochs if e.number > ratio_since]
        log_e, threshold = ratio.log_e_mismatch(sent), log_threshold(policy.alpha * MISMATCH_SHARE)
        got = sum(e.candidate for e in sent if e.is_informative)
        due = sum(e.weight * e.both for e in sent if e.is_informative)
        message = (
            f"sample ratio: the candidate was sent {got:g} requests, its weight says {due:.0f}; "
            f"evidence 10^{as_log10(log_e):.1f}, limit 10^{as_log10(threshold):.1f}"
        )
        verdict = Verdict.FAIL if log_e >= threshold else Verdict.PASS
        found.append(Gate("sample ratio", Kind.HOLD, verdict, as_log10(log_e), as_log10(threshold), message))
    if load is not None and "utilisation" in policy.guardrails:
        found.append(_utilisation(epochs, policy, load))
    return found


def _utilisation(epochs: Sequence[EpochTally], policy: Policy, load: Load) -> Gate:
    arms = _total([e.incumbent for e in epochs]), _total([e.candidate for e in epochs])
    name, limit = "utilisation", policy.most_utilisation
    if arms[1].batches < LEAST_BATCHES or not arms[0].batches or not arms[1].rows:
        message = f"{name}: {arms[1].batches} batches of the candidate, it is projected from {LEAST_BATCHES}"
        return Gate(name, Kind.HOLD, Verdict.UNDECIDED, 0.0, 0.0, message)
    row_s, projected = projection(*arms, load)
    against = arms[0].compute_s / max(arms[0].rows, 1)
    verdict = Verdict.FAIL if projected > limit else Verdict.PASS
    message = (
        f"{name}: {row_s * 1e6:.3g} us of compute a row (incumbent {against * 1e6:.3g}), "
        f"so {projected:.0%} of {load.places} at full weight, limit {limit:.0%}"
    )
    # An estimate and no test: the scale is that of the share, so that it can be drawn beside the others.
    return Gate(name, Kind.HOLD, verdict, as_log10(log(max(projected, 1e-9))), as_log10(log(limit)), message)


def projection(incumbent: ArmTally, candidate: ArmTally, load: Load) -> tuple[float, float]:
    """The candidate's seconds of compute a row, were its batches as large as the incumbent's, and the share
    of the places that all requests of the model would then take.

    A small share of the traffic makes small batches, which cost more a row; the profile says by how much.
    """
    row_s = candidate.compute_s / candidate.rows
    sizes = [arm.rows / max(arm.batches, 1) for arm in (incumbent, candidate)]
    small, large = (_batch_s(load.batch_s, size) / size if size else 0.0 for size in reversed(sizes))
    if small > 0 and large > 0:
        row_s *= min(large / small, 1.0)
    rows_each = (incumbent.rows + candidate.rows) / max(incumbent.requests + candidate.requests, 1)
    return row_s, row_s * rows_each * load.rate_per_s / max(load.places, 1)


def _batch_s(profile: dict[int, float], rows: float) -> float:
    """Seconds for a batch, between the sizes that were measured; 0 without any."""
    sizes = sorted(profile)
    if not sizes:
        return 0.0
    if rows <= sizes[0]:
        return profile[sizes[0]]
    for low, high in zip(sizes, sizes[1:], strict=False):
        if rows <= high:
            return profile[low] + (profile[high] - profile[low]) * (rows - low) / (high - low)
    return profile[sizes[-1]] * rows / sizes[-1]


def _proofs(epochs: Sequence[EpochTally], policy: Policy) -> list[Gate]:
    errors = _errors_proof(epochs, policy)
    if policy.is_sticky and policy.shadow:
        # Answers of sticky units prove nothing about latency; their copies do.
        return [errors, paired_gates.compute_proof(epochs, policy)]
    at = [(e, k) for e in epochs if (k := _proved_cut(e, policy)) is not None]
    if not at:
        words = "no latencies of the incumbent to compare with yet"
        limit = as_log10(log_threshold(policy.alpha))
        none = Gate("latency within margin", Kind.PROMOTION, Verdict.UNDECIDED, 0.0, limit, words)
        return [errors, none]
    timed = [Epoch(e.weight, e.incumbent.timed, e.candidate.timed) for e, _ in at]
    slow = [Epoch(e.weight, e.incumbent.slow[k], e.candidate.slow[k]) for e, k in at]
    level = at[-1][0].cuts[at[-1][1]].level
    words = f"above the cuts at {level_name(level).removeprefix('latency ')}: " + _versus(
        [e for e, _ in at], _slower_than([k for _, k in at])
    )
    return [errors, _latency_proof(timed, slow, MOST_EXCESS[level], policy, words)]


def _latency_proof(
    timed: Sequence[Epoch], slow: Sequence[Epoch], margin: float, policy: Policy, words: str
) -> Gate:
    name, threshold = "latency within margin", log_threshold(policy.alpha)
    weight = timed[-1].weight

    def log_e(more: float) -> float:
        return difference.log_e_safe(*_after(timed, slow, weight, more), margin)

    if policy.is_sticky:
        return _unprovable(name, log_e(0.0), threshold, words)
    return _proved(name, log_e, threshold, margin, words)


def _errors_proof(epochs: Sequence[EpochTally], policy: Policy) -> Gate:
    log_e, threshold = _log_e_within(epochs, policy), log_threshold(policy.alpha)
    words = _versus(epochs, _errors)
    if policy.reverse:
        pairs = paired_gates.served(epochs)
        words = f"{words}; of its own that both ran {paired_gates.failed_words(pairs)}"
    name = "errors within margin"
    if policy.is_sticky and not policy.reverse:
        return _unprovable(name, log_e(0.0)(policy.margin), threshold, words)
    return _proved(name, lambda more: log_e(more)(policy.margin), threshold, policy.margin, words)


def _unprovable(name: str, log_e: float, threshold: float, words: str) -> Gate:
    message = (
        f"{name}: {words}; counts of requests prove nothing where units stick to an arm: promote by hand"
    )
    return Gate(name, Kind.PROMOTION, Verdict.UNDECIDED, as_log10(log_e), as_log10(threshold), message)


def _proved(
    name: str, log_e_after: Callable[[float], float], threshold: float, margin: float, words: str
) -> Gate:
    log_e = log_e_after(0.0)
    verdict = Verdict.PASS if log_e >= threshold else Verdict.UNDECIDED
    message = (
        f"{name}: {words}, {margin:.2%} more is allowed; evidence 10^{as_log10(log_e):.1f}, "
        f"wanted 10^{as_log10(threshold):.1f}"
    )
    needed = requests_needed(log_e_after, threshold)
    return Gate(name, Kind.PROMOTION, verdict, as_log10(log_e), as_log10(threshold), message, needed)


def _after(
    asked: Sequence[Epoch], bad: Sequence[Epoch], weight: float, more: float
) -> tuple[list[Epoch], list[Epoch]]:
    """The counts after n more requests at this weight and the rates so far."""
    if not more:
        return [*asked], [*bad]
    totals = [(sum(e.incumbent for e in of), sum(e.candidate for e in of)) for of in (bad, asked)]
    rates = [hits / of if of else 0.0 for hits, of in zip(*totals, strict=True)]
    a, b = (1.0 - weight) * more, weight * more
    return [*asked, Epoch(weight, a, b)], [*bad, Epoch(weight, a * rates[0], b * rates[1])]


def _proved_cut(epoch: EpochTally, policy: Policy) -> int | None:
    """The index of the cut that must be proved: the objective's, or the highest at or below the p95."""
    wanted = [
        (cut.level, k)
        for k, cut in enumerate(epoch.cuts)
        if (cut.level == OBJECTIVE) == (policy.objective_s is not None) and cut.level <= PROVED_LEVEL
    ]
    return max(wanted)[1] if wanted else None


def _harm(epochs: Sequence[EpochTally]) -> float:
    """Bad answers of the candidate beyond those that the incumbent's rate in the same epoch would have
    made."""
    extra = 0.0
    for epoch in epochs:
        mine, theirs = epoch.candidate, epoch.incumbent
        extra += mine.bad - mine.requests * (theirs.bad / theirs.requests if theirs.requests else 0.0)
    return max(extra, 0.0)


def _total(arms: Sequence[ArmTally]) -> ArmTally:
    return ArmTally(
        requests=sum(arm.requests for arm in arms),
        rows=sum(arm.rows for arm in arms),
        batches=sum(arm.batches for arm in arms),
        compute_s=sum(arm.compute_s for arm in arms),
    )


def _errors(arm: ArmTally, index: int) -> tuple[int, int]:
    return arm.bad, arm.requests


def _slower_than(which: Sequence[int]) -> Callable[[ArmTally, int], tuple[int, int]]:
    return lambda arm, index: (arm.slow[which[index]], arm.timed)


def _versus(epochs: Sequence[EpochTally], of: Callable[[ArmTally, int], tuple[int, int]]) -> str:
    words = []
    for name in ("candidate", "incumbent"):
        # While the candidate had no share, what the incumbent did is no comparison.
        bad = requests = 0
        for index, epoch in enumerate(epochs):
            if epoch.weight > 0.0:
                hits, of_all = of(getattr(epoch, name), index)
                bad, requests = bad + hits, requests + of_all
        words.append(f"{name} {bad:,} of {requests:,} ({bad / max(requests, 1):.2%})")
    return ", ".join(words)
