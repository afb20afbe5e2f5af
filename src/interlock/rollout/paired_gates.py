"""Judges a candidate by requests that both versions ran: shadow and reverse shadow.

No gate here needs to know who was assigned to which arm: traffic may ramp and drift, and units may stick to
an arm. Alarms: only the candidate fails; its answers are unsound; they differ from the incumbent's in more
than a share; it takes longer to compute. Proofs: it fails within the margin; it takes no longer to compute.

A shadow shows how a candidate fails on requests, and not how it fails in serving: nothing waits for a copy,
and it is never encoded. So what lets a canary through, and what bounds its harm, is counted on the requests
that it answered (a reverse shadow); a shadow can only stop it, or let it have its first requests.

Whose run of a pair comes first is no chance: the copy finds warm caches, and is held up by what else the node
does. So an alarm about times wants more than a majority (`COMPUTE_MARGIN`), of batches that took longer than
`slower` times the incumbent's and .1 ms: two equal versions are far from that, whoever runs first.
"""

from collections.abc import Callable, Iterable, Sequence

from interlock.core.policy import Policy
from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict
from interlock.evidence import attribution, paired
from interlock.evidence.combine import requests_needed
from interlock.evidence.mixture import log_threshold, log_tilted
from interlock.evidence.paired import Pairs
from interlock.rollout.judgement import BUDGET_ALPHA, Gate, Kind, alarm, as_log10
from interlock.rollout.tally import EpochTally

COMPUTE_MARGIN = 0.3
"""So much more often than not a candidate's batch may be the slower one before that is an alarm: .3 is 65 %
of all batches. A proof wants it to be the faster one more often than not."""


def total(epochs: Sequence[EpochTally]) -> PairCounts:
    """All pairs of these epochs."""
    return _sum(epoch.both for epoch in epochs)


def served(epochs: Sequence[EpochTally]) -> PairCounts:
    """The pairs of requests that the candidate answered."""
    return _sum(epoch.pairs for epoch in epochs)


def copied(epochs: Sequence[EpochTally]) -> PairCounts:
    """The pairs of requests of which it ran a copy."""
    return _sum(epoch.copies for epoch in epochs)


def number_of_alarms(policy: Policy) -> int:
    """How many alarms may ever be looked at, for the union bound."""
    if not policy.is_paired:
        return 0
    judged = ("errors" in policy.guardrails, "outputs" in policy.guardrails, _limits_disagreement(policy))
    return sum(judged) + ("latency" in policy.guardrails and bool(policy.reverse))


def alarms(epochs: Sequence[EpochTally], policy: Policy, threshold: float) -> list[Gate]:
    """The gates that roll back, each at `threshold` (of ln E)."""
    if not policy.is_paired:
        return []
    pairs, found = total(epochs), []
    if "errors" in policy.guardrails:
        found.append(
            alarm("paired errors", paired.log_e_harm(failures(pairs)), threshold, failed_words(pairs))
        )
    if "outputs" in policy.guardrails:
        unsound = Pairs(worse=pairs.unsound_worse, same=pairs.unsound_both, better=pairs.unsound_better)
        words = f"not finite or out of range: {_whose(unsound)}, both {pairs.unsound_both:,}"
        found.append(alarm("unsound outputs", paired.log_e_harm(unsound), threshold, words))
    if _limits_disagreement(policy):
        found.append(alarm("disagreement", _log_e_differ(pairs, policy), threshold, _differ(pairs, policy)))
    if "latency" in policy.guardrails and policy.reverse:
        times = compute(served(epochs))
        log_e = paired.log_e_harm(times, COMPUTE_MARGIN)
        found.append(alarm("compute", log_e, threshold, _took(times, policy)))
    return found


def slow_shadow(epochs: Sequence[EpochTally], policy: Policy) -> Gate:
    """Whether the copies of a shadow take longer: a matter for a person, since copies wait for clients."""
    times = compute(copied(epochs))
    threshold = log_threshold(policy.alpha)
    gate = alarm("compute", paired.log_e_harm(times, COMPUTE_MARGIN), threshold, _took(times, policy))
    verdict = gate.verdict if gate.verdict is Verdict.FAIL else Verdict.PASS
    return Gate(
        gate.name,
        Kind.HOLD,
        verdict,
        gate.log10_e,
        gate.log10_threshold,
        f"{gate.message}; other work of the node may have held the copies up",
    )


def copies_proof(epochs: Sequence[EpochTally], policy: Policy) -> Gate:
    """That copies fail at most `margin` more often: what a shadow can prove."""
    pairs = failures(copied(epochs))
    words = f"{failed_words(copied(epochs))}, {policy.margin:.2%} more is allowed"
    return proof(
        "errors within margin",
        lambda more: paired.log_e_safe(grown(pairs, more), policy.margin),
        epochs,
        policy,
        words,
    )


def compute_proof(epochs: Sequence[EpochTally], policy: Policy) -> Gate:
    """That the candidate's batches take longer than `slower` times the incumbent's less often than not."""
    times = compute(copied(epochs))
    drawn = copied(epochs).good
    share = times.count / drawn if drawn else 0.0
    return proof(
        "compute within margin",
        lambda more: paired.log_e_safe(grown(times, more * share), 0.0),
        epochs,
        policy,
        _took(times, policy),
    )


def proof(
    name: str,
    log_e_after: Callable[[float], float],
    epochs: Sequence[EpochTally],
    policy: Policy,
    words: str,
) -> Gate:
    """A gate that lets through; `log_e_after(n)` is ln E after n more pairs."""
    threshold = log_threshold(policy.alpha)
    log_e = log_e_after(0.0)
    verdict = Verdict.PASS if log_e >= threshold else Verdict.UNDECIDED
    message = f"{name}: {words}; evidence 10^{as_log10(log_e):.1f}, wanted 10^{as_log10(threshold):.1f}"
    needed = needed_requests(log_e_after, threshold, epochs, policy)
    return Gate(name, Kind.PROMOTION, verdict, as_log10(log_e), as_log10(threshold), message, needed)


def copies_excess_most(epochs: Sequence[EpochTally]) -> float:
    """The upper end of the confidence sequence of how much more often copies fail, in [-1, 1]."""
    return paired.excess_interval(failures(copied(epochs)), 2 * BUDGET_ALPHA).greatest


def needed_to_clear(epochs: Sequence[EpochTally], policy: Policy, excess: float) -> float | None:
    """About how many more requests until copies are known to fail less than `excess` more often."""
    pairs = failures(copied(epochs))
    threshold = log_threshold(BUDGET_ALPHA)
    return needed_requests(
        lambda more: paired.log_e_safe(grown(pairs, more), excess), threshold, epochs, policy
    )


def needed_requests(
    log_e_after: Callable[[float], float], threshold: float, epochs: Sequence[EpochTally], policy: Policy
) -> float | None:
    """About how many more requests of the model until ln E is at its threshold, at the share of them that
    is copied now; None when it is not on its way."""
    weight = epochs[-1].weight if epochs else 0.0
    share = (1.0 - weight) * (policy.shadow or 0.0)
    found = requests_needed(log_e_after, threshold)
    if found is None or found == 0.0:
        return found
    return found / share if share else None


def _sum(found: Iterable[PairCounts]) -> PairCounts:
    whole = PairCounts()
    for pairs in found:
        whole = whole.merge(pairs)
    return whole


def failures(pairs: PairCounts) -> Pairs:
    """Pairs by who failed."""
    return Pairs(worse=pairs.worse, same=pairs.good + pairs.bad, better=pairs.better)


def compute(pairs: PairCounts) -> Pairs:
    """Pairs of batches by which took longer."""
    return Pairs(worse=pairs.slower, same=0, better=pairs.faster)


def grown(pairs: Pairs, more: float) -> Pairs:
    """After so many more pairs at the rates so far."""
    if not pairs.count:
        return Pairs(same=more)
    grown = 1.0 + more / pairs.count
    return Pairs(pairs.worse * grown, pairs.same * grown, pairs.better * grown)


def _limits_disagreement(policy: Policy) -> bool:
    limit = policy.most_disagreement
    return "outputs" in policy.guardrails and limit is not None and limit < 1.0


def _log_e_differ(pairs: PairCounts, policy: Policy) -> float:
    limit = policy.most_disagreement
    assert limit is not None
    return log_tilted(pairs.disagreed, [(pairs.disagreed + pairs.agreed, limit)], attribution.HARM)


def failed_words(pairs: PairCounts) -> str:
    """Who failed of the requests that both ran, for people."""
    count = pairs.good + pairs.worse + pairs.better + pairs.bad
    return f"{_whose(failures(pairs))}, both {pairs.bad:,} of {count:,} requests that both ran"


def _whose(pairs: Pairs) -> str:
    return f"only the candidate {pairs.worse:,}, only the incumbent {pairs.better:,}"


def _differ(pairs: PairCounts, policy: Policy) -> str:
    count = pairs.agreed + pairs.disagreed
    share = pairs.disagreed / count if count else 0.0
    return (
        f"{pairs.disagreed:,} of {count:,} answers differ ({share:.2%}), {policy.most_disagreement:.0%} may"
    )


def _took(times: Pairs, policy: Policy) -> str:
    slower = f"{times.worse:,} batches took more than {policy.slower:g} times the incumbent's"
    return f"{slower}, {times.better:,} less"
