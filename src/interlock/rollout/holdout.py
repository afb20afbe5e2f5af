"""Decides whether a version is worse than another on rows that both answered; pure.

The candidate's loss may exceed the incumbent's by a margin. PASS: it is shown to be less than the margin, in
every metric and every slice (an intersection: each at alpha, no correction). WORSE: it is shown to be more in
one of them (a union: each at alpha / number of checks, Bonferroni). Else UNDECIDED. So a version that is
worse by the margin or more in some metric passes with a chance of alpha at most, and one that is so in none
is called worse with a chance of alpha at most, whatever the number of metrics and slices.

Wrong answers are compared by `evidence/trinomial.py`, all other losses by `evidence/capped.py`.
"""

from collections.abc import Iterator
from math import ceil, log, sqrt
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.capped import mean_bounds
from interlock.evidence.difference import Interval
from interlock.evidence.paired import Pairs
from interlock.evidence.trinomial import excess_bounds
from interlock.rollout.checks import Check, Outcome

_ROOT_PART = 0.1
"""Of RMSE: the part of alpha that goes to the incumbent's own RMSE, which the margin is added to."""
_POWER = 0.84
"""The normal quantile of .8: with the rows that are called for, 4 of 5 holdouts are decided."""


class Losses(msgspec.Struct, frozen=True):
    """What each row cost either version by one metric, [rows], none above `cap`; `margin` is in the metric's
    own unit. Of accuracy a loss is 1 for a wrong answer; of rmse it is the squared error."""

    metric: str
    margin: float
    cap: float
    incumbent: Array
    candidate: Array

    def of(self, rows: Array) -> "Losses":
        """Of some of the rows, by index."""
        return msgspec.structs.replace(self, incumbent=self.incumbent[rows], candidate=self.candidate[rows])


class Slice(msgspec.Struct, frozen=True):
    """Some of the rows, by index: those of one value, or range of values, of a column."""

    column: str
    label: str
    rows: Array


class Snapshot(msgspec.Struct, frozen=True):
    """All that a verdict is made of. A slice of fewer than `least_rows` is not judged; in a slice the margin
    is `slice_factor` times as wide."""

    losses: tuple[Losses, ...]
    slices: tuple[Slice, ...] = ()
    alpha: float = 0.05
    least_rows: int = 100
    slice_factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 0.5:
            raise ConfigError(f"alpha is {self.alpha}: want more than 0 and less than .5, such as .05")
        for each in self.losses:
            unit = sqrt(each.cap) if each.metric == "rmse" else each.cap
            if not 0.0 < each.margin * max(self.slice_factor, 1.0) <= unit / 2:
                raise ConfigError(
                    f"the margin of {each.metric} is {each.margin:g}: want more than 0, and in slices too at "
                    f"most {unit / 2:g}, half of what a row can cost ({unit:g})"
                )


def judge(snapshot: Snapshot) -> tuple[Check, ...]:
    """One check for each metric on all rows, then for each metric in each slice that has enough rows.

    >>> right, wrong = np.zeros(1000), np.array([1.0] * 100 + [0.0] * 900)
    >>> [check.outcome for check in judge(Snapshot((Losses("accuracy", 0.01, 1.0, right, wrong),)))]
    ['worse']
    """
    judged = list(_judged(snapshot))
    alpha_least = snapshot.alpha / max(len(judged), 1)
    return tuple(_check(name, losses, snapshot.alpha, alpha_least) for name, losses in judged)


def slices_of(column: str, values: Array, bins: int = 4, most_values: int = 20) -> tuple[Slice, ...]:
    """The slices of a column [rows]: its values where they are texts or at most `most_values`, else ranges
    with about as many rows each, cut at quantiles; missing ones apart. Values are taken most frequent first,
    and those beyond `most_values` together.

    >>> [(one.label, len(one.rows)) for one in slices_of("age", np.arange(100.0), bins=2)]
    [('below 49.5', 50), ('49.5 and above', 50)]
    """
    plain = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.tolist()]
    if values.dtype.kind in "iuf":
        missing = np.isnan(values.astype(np.float64))
        seen = np.unique(values[~missing])
        if len(seen) > most_values:
            return _ranges(column, values, missing, bins)
    found = [str(value) for value in plain]
    labels, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    texts = np.array(found)
    kept = labels[order[:most_values]]
    slices = [Slice(column, str(label), np.flatnonzero(texts == label)) for label in kept]
    if len(labels) > most_values:
        slices.append(Slice(column, "(all others)", np.flatnonzero(~np.isin(texts, kept))))
    return tuple(slices)


def too_small(snapshot: Snapshot) -> tuple[Slice, ...]:
    """The slices that have too few rows to be judged."""
    return tuple(one for one in snapshot.slices if len(one.rows) < snapshot.least_rows)


def worst_slice(checks: tuple[Check, ...]) -> Check | None:
    """The check of a slice whose excess is the largest part of its margin; None without slices."""
    sliced = [check for check in checks if check.facts.get("slice") is not None]
    return max(sliced, key=lambda check: check.facts["excess"] / check.facts["margin"], default=None)


def _ranges(column: str, values: Array, missing: Array, bins: int) -> tuple[Slice, ...]:
    cuts = np.unique(np.quantile(values[~missing].astype(np.float64), np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.where(missing, -1, np.searchsorted(cuts, values, side="right"))
    labels = [
        f"below {cuts[0]:.6g}",
        *(f"{low:.6g} to {high:.6g}" for low, high in zip(cuts, cuts[1:], strict=False)),
        f"{cuts[-1]:.6g} and above",
    ]
    named = [(number, label) for number, label in enumerate(labels)] + [(-1, "missing")]
    found = ((label, np.flatnonzero(place == number)) for number, label in named)
    return tuple(Slice(column, label, rows) for label, rows in found if len(rows))


def _judged(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str, str], Losses]]:
    for losses in snapshot.losses:
        yield (losses.metric, "", ""), losses
    for one in snapshot.slices:
        if len(one.rows) >= snapshot.least_rows:
            for losses in snapshot.losses:
                wider = msgspec.structs.replace(losses, margin=losses.margin * snapshot.slice_factor)
                yield (losses.metric, one.column, one.label), wider.of(one.rows)


def _check(name: tuple[str, str, str], losses: Losses, alpha: float, alpha_least: float) -> Check:
    metric, column, label = name
    found = _excess(losses, alpha, alpha_least)
    excess = _value(losses, losses.candidate) - _value(losses, losses.incumbent)
    outcome: Outcome = "undecided"
    if found.greatest < losses.margin:
        outcome = "pass"
    elif found.least > losses.margin:
        outcome = "worse"
    needed = _needed(losses, excess, found, (alpha, alpha_least)) if outcome == "undecided" else None
    sign = -1.0 if metric == "accuracy" else 1.0
    shift = 1.0 if metric == "accuracy" else 0.0
    facts: dict[str, Any] = {
        "metric": metric,
        "slice": None if not column else {"column": column, "label": label},
        "rows": len(losses.candidate),
        "incumbent": shift + sign * _value(losses, losses.incumbent),
        "candidate": shift + sign * _value(losses, losses.candidate),
        "excess": excess,
        "least": found.least,
        "greatest": found.greatest,
        "margin": losses.margin,
        "cap": losses.cap,
        "level_pass": 1 - alpha,
        "level_worse": 1 - alpha_least,
        "rows_needed": needed,
    }
    title = metric if not column else f"{metric} where {column} = {label}"
    return Check(title, outcome, _words(facts, outcome), facts)


def _words(facts: dict[str, Any], outcome: Outcome) -> str:
    excess, margin = f"{facts['excess']:+.4g}", f"{facts['margin']:.4g}"
    said = f"worse by {excess} ({facts['least']:+.4g} to {facts['greatest']:+.4g}), margin {margin}"
    said += f", {facts['rows']} rows"
    if outcome != "undecided":
        return said
    needed = facts["rows_needed"]
    if needed is None:
        return f"{said}; the difference is about the margin: no number of rows is likely to tell"
    return f"{said}; about {needed} rows would probably tell"


def _value(losses: Losses, rows: Array) -> float:
    """The metric's loss, in its own unit."""
    mean = float(rows.mean()) if len(rows) else 0.0
    return sqrt(mean) if losses.metric == "rmse" else mean


def _excess(losses: Losses, alpha: float, alpha_least: float) -> Interval:
    """Between which values the candidate's loss exceeds the incumbent's, in the metric's unit."""
    one, two = losses.incumbent, losses.candidate
    if losses.metric == "accuracy":
        worse, better = int((two > one).sum()), int((two < one).sum())
        return excess_bounds(Pairs(worse, len(one) - worse - better, better), alpha, alpha_least)
    if losses.metric != "rmse":
        return mean_bounds(two - one, losses.cap, alpha, alpha_least)
    squares = mean_bounds(two - one, losses.cap, alpha * (1 - _ROOT_PART), alpha_least * (1 - _ROOT_PART))
    # Either end of the incumbent's RMSE may be the one that counts.
    ends = [mean_bounds(one, losses.cap, _ROOT_PART * level / 2) for level in (alpha, alpha_least)]

    def root(square: float, mean: Interval, greatest: bool) -> float:
        # sqrt(r^2 + D) - r falls with r where D > 0, and rises where D < 0.
        low, high = (sqrt(min(max(end, 0.0), losses.cap)) for end in (mean.least, mean.greatest))
        r = low if (square > 0) == greatest else high
        return sqrt(max(r * r + square, 0.0)) - r

    return Interval(root(squares.least, ends[1], False), root(squares.greatest, ends[0], True))


def _needed(losses: Losses, excess: float, found: Interval, alpha: tuple[float, float]) -> int | None:
    """How many rows would probably tell, if the difference is as seen; None where it is about the margin.

    The half-width is taken as a / n + b / sqrt(n), with b by the spread of the differences.
    """
    n, gap = len(losses.candidate), abs(losses.margin - excess)
    below = excess < losses.margin
    width = found.greatest - excess if below else excess - found.least
    spread = float((losses.candidate - losses.incumbent).std()) if n else 0.0
    if losses.metric == "rmse":  # of squared errors: the root's slope
        spread /= 2 * max(_value(losses, losses.incumbent), 1e-12)
    if gap < 0.05 * width or gap == 0:
        return None
    level = alpha[0] if below else alpha[1]
    if losses.metric == "accuracy":
        b = NormalDist().inv_cdf(1 - level) * spread
    else:
        b = sqrt(2 * log(1 / level)) * spread
    a = max(width - b / sqrt(n), 0.0) * n
    per_root = b + _POWER * spread
    # a x^2 + per_root x = gap, in the form that stands a = 0 and per_root = 0
    x = 2 * gap / (per_root + sqrt(per_root**2 + 4 * a * gap))
    return max(ceil(1 / x**2), n + 1)
