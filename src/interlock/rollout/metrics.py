"""Decides what business metrics say of a candidate: from feedback, scored at one fixed age in both arms.

Values are turned into badness in [0, 1] (`Metric.badness`). A request without feedback counts as `missing`,
and the sums are taken about that value: what has no feedback adds nothing to them, so that nobody needs to
know how many such requests there were. Where only requests with feedback count, they are taken about the mean
of the incumbent's before them (set beforehand, so any is valid; the nearer the stronger).

A proof that the candidate is worse by less than a margin grows with the number of requests. There, what is
known for sure is counted: those that were old enough at an earlier look, or had feedback; fewer only weaken
the proof.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from interlock.core.feedback import Metric
from interlock.core.verdict import Verdict
from interlock.evidence import bounded
from interlock.evidence.bounded import MeanEpoch, Moments
from interlock.evidence.combine import requests_needed
from interlock.evidence.mixture import log_threshold
from interlock.rollout.judgement import Gate, Kind, alarm, as_log10

FIRST_CENTRE = 32
"""Values of the incumbent before the first centre is taken from them; each next one at twice as many."""
SAMPLES = 64
"""How many earlier looks are kept to know how many requests are old enough."""
MOST_A_LOOK = 20_000
"""Values that are scored in one look: some 200 ms, for which the others wait."""
_LAST = "\x7f"
"""Behind every request id."""


class Part(msgspec.Struct, frozen=True):
    """Feedback of requests of one epoch about one centre (of badness). `arms` has the moments of each arm by
    its index; `requests` how many requests of each arm are known to be old enough, 0 where that is not
    known."""

    epoch: int
    centre: float
    arms: tuple[Moments, ...]
    requests: tuple[int, ...]


class MetricTally(msgspec.Struct, frozen=True):
    """All that has been scored for one metric."""

    name: str
    parts: tuple[Part, ...] = ()


class Values(Protocol):
    """Where feedback lies, in the order of its requests (`registry.feedback.FeedbackStore`)."""

    def scored(
        self, release: int, name: str, after: tuple[int, str], until_ms: int, age_ms: int, most: int = ...
    ) -> Sequence["Value"]: ...


class Value(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def arm(self) -> int: ...
    @property
    def sent_ms(self) -> int: ...
    @property
    def value(self) -> float: ...


class Scores:
    """Scores one metric of one release, look by look; a new one begins at the start and comes to the same.

    `arms`: how many there are.
    """

    def __init__(self, release: int, metric: Metric, arms: int) -> None:
        self._release = release
        self._metric = metric
        self._arms = arms
        self._after = 0, ""
        self._parts: dict[tuple[int, float], list[Moments]] = {}
        self._of_incumbent = Moments()
        self._next_centre = FIRST_CENTRE
        self._centre = metric.badness(metric.missing) if not metric.only_with_feedback else 0.5
        self._asked: deque[tuple[int, Mapping[int, tuple[int, ...]]]] = deque()

    def look(
        self, values: Values, now_ms: int, asked_ms: int, asked: Mapping[int, tuple[int, ...]]
    ) -> MetricTally:
        """What is known at `now_ms` (Unix time; all feedback that came by then is in `values`). `asked`: the
        requests that had been sent at `asked_ms`, by epoch and arm. Much is scored in several looks."""
        metric, age_ms = self._metric, int(self._metric.age_s * 1000)
        until_ms = now_ms - age_ms
        found = values.scored(self._release, metric.name, self._after, until_ms, age_ms, MOST_A_LOOK)
        for one in found:
            self._add(one.epoch, one.arm, metric.badness(one.value))
        if len(found) < MOST_A_LOOK:
            self._after = max(self._after, (until_ms, _LAST))
        else:
            self._after = found[-1].sent_ms, found[-1].id
            until_ms = found[-1].sent_ms - 1
        old = self._old(until_ms, age_ms, asked_ms, asked)
        nothing = (0,) * self._arms
        if metric.only_with_feedback:
            old = {}
        else:
            for epoch in old:
                self._parts.setdefault((epoch, self._centre), [Moments()] * self._arms)
        parts = (
            Part(epoch, centre, tuple(arms), old.get(epoch, nothing))
            for (epoch, centre), arms in self._parts.items()
        )
        return MetricTally(metric.name, tuple(parts))

    def _add(self, epoch: int, arm: int, badness: float) -> None:
        if epoch < 1 or arm >= self._arms:
            return
        arms = self._parts.setdefault((epoch, self._centre), [Moments()] * self._arms)
        one = Moments(1, badness, badness * badness)
        arms[arm] = arms[arm].merge(one)
        if self._metric.only_with_feedback and arm == 0:
            self._of_incumbent = self._of_incumbent.merge(one)
            if self._of_incumbent.count >= self._next_centre:
                self._next_centre *= 2
                self._centre = self._of_incumbent.total / self._of_incumbent.count

    def _old(
        self, until_ms: int, age_ms: int, asked_ms: int, asked: Mapping[int, tuple[int, ...]]
    ) -> Mapping[int, tuple[int, ...]]:
        """Requests of which each had been sent by `until_ms`: by the counts of an earlier look."""
        kept = self._asked
        if not kept or (asked_ms - kept[-1][0] >= age_ms / SAMPLES and len(kept) < 4 * SAMPLES):
            kept.append((asked_ms, dict(asked)))
        while len(kept) > 1 and kept[1][0] <= until_ms:
            kept.popleft()
        return kept[0][1] if kept[0][0] <= until_ms else {}


def log_e_worse(tally: MetricTally, weights: Mapping[int, float], arm: int = 1) -> float:
    """ln E against "the candidate is no worse". `weights`: by epoch, of the candidate among the two that are
    compared."""
    return bounded.log_e_harm(_epochs(tally, weights, arm))


def log_e_within(
    tally: MetricTally,
    metric: Metric,
    weights: Mapping[int, float],
    arm: int = 1,
    margin: float | None = None,
) -> float:
    """ln E against "the candidate is worse by the margin or more"; of margin 0: against "it is no better"."""
    allowed = metric.margin if margin is None else margin
    scaled = allowed / (metric.greatest - metric.least)
    return bounded.log_e_safe(_epochs(tally, weights, arm), scaled)


def gates(
    metric: Metric,
    tally: MetricTally,
    weights: Mapping[int, float],
    alarm_threshold: float,
    threshold: float,
    arm: int = 1,
) -> list[Gate]:
    """The alarm of a metric, and its proof where it wants one. Thresholds are logarithms."""
    words = versus(metric, tally, arm)
    found = [alarm(metric.name, log_e_worse(tally, weights, arm), alarm_threshold, words)]
    if metric.prove:
        log_e = log_e_within(tally, metric, weights, arm)
        found.append(_proof(f"{metric.name} within margin", metric, tally, arm, log_e, threshold, words))
    return found


def _proof(
    name: str, metric: Metric, tally: MetricTally, arm: int, log_e: float, threshold: float, words: str
) -> Gate:
    verdict = Verdict.PASS if log_e >= threshold else Verdict.UNDECIDED
    message = (
        f"{name}: {words}, {metric.margin:g} worse is allowed; evidence 10^{as_log10(log_e):.1f}, "
        f"wanted 10^{as_log10(threshold):.1f}"
    )
    return Gate(
        name,
        Kind.PROMOTION,
        verdict,
        as_log10(log_e),
        as_log10(threshold),
        message,
        _needed(tally, arm, log_e, threshold),
    )


def better(metric: Metric, tally: MetricTally, weights: Mapping[int, float], alpha: float, arm: int) -> Gate:
    """The gate by which an A/B test ends: proof that a candidate is better than the incumbent."""
    log_e, threshold = log_e_within(tally, metric, weights, arm, margin=0.0), log_threshold(alpha)
    name = f"{metric.name} better"
    verdict = Verdict.PASS if log_e >= threshold else Verdict.UNDECIDED
    message = (
        f"{name}: {versus(metric, tally, arm)}; evidence 10^{as_log10(log_e):.1f}, "
        f"wanted 10^{as_log10(threshold):.1f}"
    )
    needed = _needed(tally, arm, log_e, threshold)
    return Gate(name, Kind.PROMOTION, verdict, as_log10(log_e), as_log10(threshold), message, needed)


def versus(metric: Metric, tally: MetricTally, arm: int = 1) -> str:
    """The means of both arms in words: of what had feedback."""
    words = []
    for name, index in (("candidate", arm), ("incumbent", 0)):
        all_of = _total(part.arms[index] for part in tally.parts)
        mean = f"{metric.value(all_of.total / all_of.count):.4g}" if all_of.count else "none"
        asked = sum(part.requests[index] for part in tally.parts)
        of = f" of {asked:,} requests" if asked and not metric.only_with_feedback else ""
        words.append(f"{name} mean {mean} of {all_of.count:,.0f} values{of}")
    return ", ".join(words)


def _needed(tally: MetricTally, arm: int, log_e: float, threshold: float) -> float | None:
    """About how many more requests, if evidence goes on growing as it did."""
    had = sum(part.arms[i].count for part in tally.parts for i in (0, arm))
    asked = max(had, sum(part.requests[i] for part in tally.parts for i in (0, arm)))
    return requests_needed(lambda more: log_e * (1.0 + more / asked) if asked else 0.0, threshold)


def _epochs(tally: MetricTally, weights: Mapping[int, float], arm: int) -> list[MeanEpoch]:
    return [
        MeanEpoch(
            weights[part.epoch],
            part.centre,
            part.arms[0],
            part.arms[arm],
            max(part.requests[0] + part.requests[arm], part.arms[0].count + part.arms[arm].count),
        )
        for part in tally.parts
        if part.epoch in weights
    ]


def _total(moments: Iterator[Moments]) -> Moments:
    found = Moments()
    for one in moments:
        found = found.merge(one)
    return found
