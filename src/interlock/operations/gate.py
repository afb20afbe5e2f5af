"""The use case `gate`: is a version worse than another on a holdout, or beyond a budget? For CI systems."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from interlock.core.errors import ArtifactError, CheckFailed, ConfigError, ModelFailed
from interlock.core.model import Array, Tensors, Version, artifact_path
from interlock.core.table import MISSING, is_missing
from interlock.evidence.binomial import share
from interlock.evidence.order import quantile_bounds
from interlock.operations import holdout, reference
from interlock.operations.difference import signature_changes
from interlock.operations.holdout import Answered, Metric
from interlock.operations.reference import Reference
from interlock.operations.resolve import resolve
from interlock.rollout.checks import Check, Outcome, Report, worst
from interlock.rollout.holdout import Snapshot, judge, too_small, worst_slice
from interlock.runtime import examples
from interlock.runtime.answer_process import Answerer
from interlock.runtime.table import table_of

if TYPE_CHECKING:
    from interlock.operations.context import Context

LATENCY_LEVEL = 0.95
ROUNDS = 200
"""Calls of one row for either version; either goes first in every other one."""
_WARM = 10
MOST_UNSEEN = 0.01
"""The share of rows with a category that the version was not registered with."""


class Plan(msgspec.Struct, frozen=True):
    """What is compared. `against`: a number or @alias. `metrics`: none for the task's defaults. A budget of
    None is not judged; `max_latency_ratio` is over the incumbent.

    Raises: ConfigError.
    """

    against: str = "@champion"
    target: str | None = None
    metrics: tuple[Metric, ...] = ()
    slices: tuple[str, ...] = ()
    alpha: float = 0.05
    seed: int = 0
    slice_rows: int = 100
    slice_factor: float = 1.0
    max_latency_ms: float | None = None
    max_latency_ratio: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ConfigError(f"the metrics {names} name one twice: want each once, with one margin")
        if self.slice_rows < 1 or not 0 < self.slice_factor < inf:
            raise ConfigError(
                f"slices of {self.slice_rows} rows, {self.slice_factor:g} margins: want 1 or more, above 0"
            )


def gate(
    ctx: Context,
    name: str,
    selector: str | None,
    data: Path | Reference,
    plan: Plan | None = None,
    progress: Callable[[str], object] = lambda words: None,
) -> Report:
    """Judge a version (a number, @alias, or None for the newest) on rows that neither was trained on.

    Raises: ModelNotFound, VersionNotFound, RegistryError; ConfigError, CheckFailed for data that do not fit
    the incumbent; Unsupported for versions that cannot be asked; ArtifactError, ModelFailed if the incumbent
    fails.
    """
    plan = plan or Plan()
    candidate = resolve(ctx, name, selector, trust=plan.trust, progress=progress)
    incumbent = resolve(ctx, name, plan.against, trust=plan.trust, progress=progress)
    rows = _rows(ctx, candidate, data, plan)
    checks = [signature_check(incumbent, candidate)]
    folders = artifact_path(ctx.home, incumbent.digest), artifact_path(ctx.home, candidate.digest)
    inputs = holdout.fitted(incumbent.signature, rows, plan.slices)
    progress(f"asking version {incumbent.number} for {rows.rows} rows")
    one = holdout.ask(folders[0], incumbent, inputs)
    notes: tuple[str, ...] = ()
    facts = {"against": incumbent.number, "rows": rows.rows, "seed": plan.seed}
    try:
        theirs = holdout.fitted(candidate.signature, rows, plan.slices)
        progress(f"asking version {candidate.number} for {rows.rows} rows")
        two = holdout.ask(folders[1], candidate, theirs)
    except (CheckFailed, ArtifactError, ModelFailed) as error:
        checks.append(Check("answers", "worse", f"it cannot answer the holdout: {error.message}"))
    else:
        checks.append(_answers(one, two))
        checks.append(data_check(candidate, rows))
        found, notes, seen = _quality(rows, one, two, plan)
        checks += found
        facts |= seen
        if plan.max_latency_ms is not None or plan.max_latency_ratio is not None:
            progress(f"timing {ROUNDS} calls of one row of either")
            times = _times((incumbent, folders[0], inputs), (candidate, folders[1], theirs))
            checks += latency_checks(*times, plan)
    checks += budget_checks(candidate, folders[1], plan)
    whole = tuple(checks)
    return Report("gate", name, candidate.number, worst(whole), whole, plan.alpha, facts, notes)


def latency_checks(incumbent_s: Array, candidate_s: Array, plan: Plan) -> tuple[Check, ...]:
    """The budgets of time, from calls [rounds] that either version took in turn."""
    found = []
    if plan.max_latency_ms is not None:
        ends = quantile_bounds(1e3 * candidate_s, LATENCY_LEVEL, plan.alpha)
        outcome: Outcome = "undecided"
        if ends.greatest <= plan.max_latency_ms:
            outcome = "pass"
        elif ends.least > plan.max_latency_ms:
            outcome = "worse"
        at = float(np.quantile(1e3 * candidate_s, LATENCY_LEVEL))
        facts = {"p95_ms": at, "least_ms": ends.least, "greatest_ms": ends.greatest}
        words = f"p95 of a call of one row {at:.3g} ms ({ends.least:.3g} to {ends.greatest:.3g}), "
        words += f"budget {plan.max_latency_ms:g} ms, {len(candidate_s)} calls"
        found.append(Check("latency", outcome, words, {**facts, "budget_ms": plan.max_latency_ms}))
    if plan.max_latency_ratio is not None:
        # The median of the ratio is within the budget where fewer than half of the rounds exceed it.
        over = share(
            int((candidate_s > plan.max_latency_ratio * incumbent_s).sum()),
            len(candidate_s),
            1 - 2 * plan.alpha,
        )
        outcome = "pass" if over.high < 0.5 else "worse" if over.low > 0.5 else "undecided"
        ratio = float(np.median(candidate_s / incumbent_s))
        words = f"{ratio:.3g} times the incumbent's (median of {over.of} rounds), budget "
        words += f"{plan.max_latency_ratio:g} times; {over.hits} rounds above it"
        found.append(
            Check(
                "latency ratio",
                outcome,
                words,
                {"ratio": ratio, "budget": plan.max_latency_ratio, "above": over.hits, "rounds": over.of},
            )
        )
    return tuple(found)


def _rows(ctx: Context, candidate: Version, data: Path | Reference, plan: Plan) -> Reference:
    """The holdout. Its target is by default the column that the candidate was registered with."""
    if isinstance(data, Reference):
        rows = data
    else:
        recorded = ctx.ledger.provenance(candidate.model, candidate.number)
        dataset = None if recorded is None else recorded.dataset
        target = plan.target or (None if dataset is None else dataset.target)
        if target is None:
            raise ConfigError(f"{data.name}: which column is the answer? Version {candidate.number} was "
                              "registered without one; name it: --target COLUMN")  # fmt: skip
        rows = reference.read(data, target)
    if rows.target is None:
        raise ConfigError("a holdout without answers: want a target")
    lacking = [row for row, value in enumerate(np.asarray(rows.target).tolist()) if is_missing(value)]
    if lacking:
        raise ConfigError(f"{len(lacking)} rows have no answer, row {lacking[0]} first: leave them out")
    return rows


def signature_check(incumbent: Version, candidate: Version) -> Check:
    changes = signature_changes(incumbent.signature, candidate.signature)
    breaking = [change for change in changes if change.breaks]
    facts = {"changes": msgspec.to_builtins(changes)}
    if breaking:
        told = "; ".join(f"{c.place} {c.name}: {c.a or 'absent'} -> {c.b or 'absent'}" for c in breaking[:5])
        return Check("signature", "worse", f"who asks {incumbent.number} cannot ask it: {told}", facts)
    return Check("signature", "pass", "the same" if not changes else f"{len(changes)} changes fit", facts)


def _answers(one: Answered, two: Answered) -> Check:
    rows = len(two.good)
    words = f"{two.refused} of {rows} rows refused (incumbent {one.refused}); they count as wrong"
    words += f"; {two.why}" if two.why else ""
    facts = {"rows": rows, "refused": two.refused, "incumbent_refused": one.refused, "why": two.why}
    return Check("answers", "pass", words, facts)


def data_check(candidate: Version, rows: Reference) -> Check:
    """Whether the holdout is of the kind that the version was registered with."""
    table = table_of(candidate.options)
    categories = {} if table is None else table.categories
    unseen, missing = {}, {}
    for column, values in rows.inputs.items():
        lacks = _missing(values)
        if lacks.any():
            missing[column] = float(lacks.mean())
        if column in categories:
            known = {v.encode() if isinstance(v, str) else v for v in categories[column]}
            strange = [not lack and v not in known for v, lack in zip(values.tolist(), lacks, strict=True)]
            if any(strange):
                unseen[column] = float(np.mean(strange))
    facts = {"unseen": unseen, "missing": missing, "limit": MOST_UNSEEN}
    told = [f"{column} {part:.1%}" for column, part in unseen.items() if part > MOST_UNSEEN]
    if told:
        words = (
            f"rows with categories that it does not know: {', '.join(told)} (limit {MOST_UNSEEN:.0%}); the "
        )
        return Check("data", "undecided", f"{words}holdout is not what it was made for", facts)
    words = f"missing values: {', '.join(f'{c} {p:.1%}' for c, p in list(missing.items())[:5]) or 'none'}"
    return Check("data", "pass", words, facts)


def _missing(values: Array) -> Array:
    if values.dtype.kind == "f":
        lacks: Array = np.isnan(values.reshape(len(values), -1)).max(axis=1)
        return lacks
    if values.dtype.kind != "O" or values.ndim != 1:
        return np.zeros(len(values), bool)
    return np.array([value == MISSING for value in values.tolist()], bool)


def _quality(
    rows: Reference, one: Answered, two: Answered, plan: Plan
) -> tuple[tuple[Check, ...], tuple[str, ...], dict[str, object]]:
    target = np.asarray(rows.target)
    target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    losses, judged, left_out = holdout.prepared(
        target, one, two, plan.metrics, slice_factor=plan.slice_factor, seed=plan.seed
    )
    snapshot = Snapshot(
        losses,
        holdout.sliced(plan.slices, rows, judged),
        plan.alpha,
        plan.slice_rows,
        plan.slice_factor,
    )
    checks = judge(snapshot)
    small = [f"{each.column} = {each.label} ({len(each.rows)} rows)" for each in too_small(snapshot)]
    notes = list(left_out)
    if small:
        notes.append(f"slices of fewer than {plan.slice_rows} rows are not judged: {', '.join(small)}")
    worst_of = worst_slice(checks)
    facts: dict[str, object] = {
        "judged_rows": len(judged),
        "metrics": {
            "incumbent": holdout.metrics_of(target, one),
            "candidate": holdout.metrics_of(target, two),
        },
        "worst_slice": None if worst_of is None else worst_of.name,
    }
    return checks, tuple(notes), facts


_Asked = tuple[Version, Path, Tensors]


def _times(one: _Asked, two: _Asked) -> tuple[Array, Array]:
    """Seconds of calls of one row, in rounds: [rounds] of either."""
    with Answerer(one[1], one[0]) as first, Answerer(two[1], two[0]) as second:
        pair = ((first, one[2]), (second, two[2]))
        times = np.zeros((2, _WARM + ROUNDS))
        for number in range(_WARM + ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                answerer, inputs = pair[which]
                row = examples.take(inputs, number, 1)
                began_s = time.perf_counter()
                answerer.attempt(row)
                times[which, number] = time.perf_counter() - began_s
    return times[0, _WARM:], times[1, _WARM:]


def budget_checks(candidate: Version, folder: Path, plan: Plan) -> list[Check]:
    found = []
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    held = candidate.profile.resident_bytes
    for name, bytes_, limit in (("size", size, plan.max_size_mb), ("memory", held, plan.max_memory_mb)):
        if limit is None:
            continue
        facts = {"mb": bytes_ / 1e6, "budget_mb": limit}
        words = f"{bytes_ / 1e6:.3g} MB, budget {limit:g} MB"
        known = bytes_ > 0
        outcome: Outcome = "worse" if bytes_ > limit * 1e6 else "pass" if known else "undecided"
        found.append(Check(name, outcome, words if known else "it was not measured at registration", facts))
    return found
