"""Decides what a comparison says: alternating rounds, the score of each, the verdict on a goal."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

Better = Literal["higher", "lower"]
OTHERS = "others_cores"
"""In a sample's detail: what of the server's cores other programs took meanwhile, the idle rival included."""
DISTURBED_CORES = 0.1
Verdict = Literal["stretch met", "hard met", "MISSED", "no goal", "INVALID"]


class Goal(msgspec.Struct, frozen=True):
    """The hard minimum and the stretch goal of a score, in the score's unit; None where there is none."""

    hard: float | None = None
    stretch: float | None = None
    better: Better = "higher"


class Sample(msgspec.Struct, frozen=True):
    """One measurement of one side."""

    value: float
    failures: int = 0
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class Side(msgspec.Struct, frozen=True):
    """One of the two that are compared: `measure(seconds)` loads it and returns what it did."""

    title: str
    measure: Callable[[float], Sample]
    configuration: str = ""


class Row(msgspec.Struct, frozen=True):
    """One line of the final table, with everything it came from.

    `scores` has one entry for each round: the ratio ours / peer ("x"), or a difference or size in its unit.
    """

    name: str
    title: str
    peer: str
    unit: str  # of `ours` and `theirs`
    ours: list[Sample]
    theirs: list[Sample]
    scores: list[float]
    score_unit: str = "x"
    goal: Goal = Goal()
    configuration: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.scores)

    @property
    def failures(self) -> int:
        """Requests of ours that failed; a row with any proves nothing."""
        return sum(sample.failures for sample in self.ours)

    @property
    def disturbed(self) -> bool:
        """Whether other programs took more than `DISTURBED_CORES` of the server's core in some round."""
        return any(sample.detail.get(OTHERS, 0) > DISTURBED_CORES for sample in self.ours + self.theirs)

    @property
    def verdict(self) -> Verdict:
        return "INVALID" if self.failures or not self.scores else judge(self.median, self.goal)


class Plan(msgspec.Struct, frozen=True):
    """How long to measure, and what of it: rounds of so many seconds for each side; counts of hot swaps."""

    rounds: int = 5
    seconds: float = 4.0
    peers: tuple[str, ...] = ()  # empty: all
    swaps: int = 200
    large_swaps: int = 20


def judge(score: float, goal: Goal) -> Verdict:
    """Compare a score with its goal.

    >>> judge(0.6, Goal(0.5, 0.7)), judge(0.6, Goal(0.4, 0.2, "lower"))
    ('hard met', 'MISSED')
    """
    if goal.hard is None:
        return "no goal"

    def reaches(limit: float) -> bool:
        return score >= limit if goal.better == "higher" else score <= limit

    if goal.stretch is not None and reaches(goal.stretch):
        return "stretch met"
    return "hard met" if reaches(goal.hard) else "MISSED"


def say(text: str) -> None:
    """Progress, on standard error: standard output has only the result."""
    print(text, file=sys.stderr, flush=True)


def compare(
    name: str,
    title: str,
    ours: Side,
    theirs: Side,
    *,
    goal: Goal,
    plan: Plan,
    unit: str = "req/s",
    score: Callable[[float, float], float] = lambda a, b: a / b,
    score_unit: str = "x",
    warm_up_s: float = 1.0,
    note: str = "",
) -> Row:
    """Measure ours, theirs, ours, theirs …: what disturbs the machine for longer than a round hits both.

    The first measurement of each side is a warm-up and is thrown away. `score(ours, theirs)` of each round's
    two values makes the row's scores; by default their ratio.
    """
    for side in (ours, theirs):
        side.measure(warm_up_s)
    our_samples: list[Sample] = []
    their_samples: list[Sample] = []
    scores: list[float] = []
    for index in range(plan.rounds):
        our_samples.append(ours.measure(plan.seconds))
        their_samples.append(theirs.measure(plan.seconds))
        a, b = our_samples[-1], their_samples[-1]
        scores.append(score(a.value, b.value))
        failed = f", failed {a.failures} / {b.failures}" if a.failures or b.failures else ""
        say(
            f"  {title}, round {index + 1} of {plan.rounds}: {ours.title} {_number(a.value)} {unit}, "
            f"{theirs.title} {_number(b.value)} {unit}: {_number(scores[-1])} {score_unit}{failed}"
        )
    return Row(
        name=name,
        title=title,
        peer=theirs.title,
        unit=unit,
        ours=our_samples,
        theirs=their_samples,
        scores=scores,
        score_unit=score_unit,
        goal=goal,
        configuration=theirs.configuration,
        note=note,
    )


def also(
    row: Row, name: str, title: str, key: str, score: Callable[[float, float], float], goal: Goal
) -> Row:
    """A second row from the samples of one that was measured: `key` is in the details of both sides."""

    def values(samples: Sequence[Sample]) -> list[Sample]:
        return [msgspec.structs.replace(sample, value=sample.detail[key]) for sample in samples]

    ours, theirs = values(row.ours), values(row.theirs)
    scores = [score(a.value, b.value) for a, b in zip(ours, theirs, strict=True)]
    return msgspec.structs.replace(
        row, name=name, title=title, ours=ours, theirs=theirs, scores=scores, goal=goal
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _middle(samples: Sequence[Sample]) -> str:
    return _number(statistics.median(sample.value for sample in samples)) if samples else "-"


def table(rows: Sequence[Row]) -> str:
    """The final table, for people; medians, with the least and the greatest score of a round in brackets."""
    head = ["row", "against", "unit", "ours", "peer", "score [min..max]", "hard", "stretch", "verdict"]
    lines = [head]
    for row in rows:
        scores = (
            f"{_number(row.median)} {row.score_unit} [{_number(min(row.scores))}..{_number(max(row.scores))}]"
            if row.scores
            else "-"
        )
        sign = ">=" if row.goal.better == "higher" else "<="
        hard, stretch = (
            "-" if limit is None else f"{sign} {_number(limit)}"
            for limit in (row.goal.hard, row.goal.stretch)
        )
        verdict = f"INVALID: {row.failures} failed" if row.verdict == "INVALID" else row.verdict
        if row.disturbed:
            verdict += ", disturbed"
        middle = [_middle(row.ours), _middle(row.theirs), scores, hard, stretch, verdict]
        lines.append([row.title, row.peer, row.unit, *middle])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


class Cost(msgspec.Struct, frozen=True):
    """What one feature adds to a request, in microseconds: the median of the rounds, and its spread."""

    feature: str
    median_us: float
    min_us: float
    max_us: float


def cost_table(costs: Sequence[Cost], total_goal_us: float) -> str:
    """Each feature's microseconds, then their sum against the goal.

    >>> print(cost_table([Cost("ids", 0.5, 0.4, 0.7)], 4))
    feature  us per request [min..max]
    ids      0.50 [0.40..0.70]
    total    0.50, goal <= 4
    """
    total_us = sum(cost.median_us for cost in costs)
    cells = [("feature", "us per request [min..max]")]
    cells += [(c.feature, f"{c.median_us:.2f} [{c.min_us:.2f}..{c.max_us:.2f}]") for c in costs]
    cells.append(("total", f"{total_us:.2f}, goal <= {total_goal_us:g}"))
    width = max(len(feature) for feature, _ in cells)
    return "\n".join(f"{feature.ljust(width)}  {text}" for feature, text in cells)
