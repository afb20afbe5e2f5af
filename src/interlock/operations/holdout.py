"""Gathers what a holdout says of two versions: answers from processes of their own, losses, slices.

What depends on the data is settled before any row is judged: of a regressor, the first rows of a seeded
order set the cap of a loss and a margin in percent, and are not judged.
"""

from __future__ import annotations

from math import log
from pathlib import Path

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, ConfigError, Unsupported
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.evidence.quality import HIGHER_IS_BETTER, REGRESSION, evaluate, per_row_loss
from interlock.operations.reference import Reference
from interlock.rollout.holdout import Losses, Slice, slices_of
from interlock.runtime import examples
from interlock.runtime.answer_process import Answerer

LOG_CAP = -log(0.01)
"""What a row costs at most in log loss: a right answer that was given less than 1 % counts as given 1 %."""
SPREADS = 6.0
"""The cap of an error, in medians of the incumbent's errors: four standard deviations of normal ones."""
_TUNING_PART, _TUNING_LEAST, _TUNING_MOST = 0.1, 20, 500


class Metric(msgspec.Struct, frozen=True):
    """A metric and by how much the candidate may be worse: in the metric's unit, or, `relative`, as a part of
    the incumbent's value."""

    name: str
    margin: float
    relative: bool = False


DEFAULTS = {
    "classification": (Metric("accuracy", 0.01), Metric("log_loss", 0.05)),
    "regression": (Metric("rmse", 0.05, True), Metric("mae", 0.05, True)),
}
"""One more wrong answer in a hundred; the truth's probability 5 % lower (e^-.05, as a geometric mean); an
error 5 % larger. A few hundred rows can prove the first two of versions that answer alike."""


class Answered(msgspec.Struct, frozen=True):
    """What a version answered: `outputs` of the rows [rows] where `good`; the others were refused, or
    answered with what is no number, and `why` tells the first of them."""

    outputs: Tensors
    good: Array
    why: str = ""

    @property
    def refused(self) -> int:
        return int((~self.good).sum())


def parse_metric(text: str) -> Metric:
    """NAME:MARGIN, or NAME:N% of the incumbent's value.

    Raises: ConfigError.
    >>> parse_metric("accuracy:0.01"), parse_metric("mae:5%")
    (Metric(name='accuracy', margin=0.01, relative=False), Metric(name='mae', margin=0.05, relative=True))
    """
    name, _, amount = text.partition(":")
    relative = amount.endswith("%")
    try:
        margin = float(amount.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        margin = 0.0
    losses = [one for one in HIGHER_IS_BETTER if one not in ("roc_auc", "r2")]
    if name not in losses or not 0 < margin < float("inf"):
        raise ConfigError(
            f"metric {text!r}: want NAME:MARGIN such as accuracy:0.01 or rmse:5%, NAME one of "
            f"{', '.join(losses)} (the others are no mean over rows)"
        )
    if relative and name not in ("rmse", "mae"):
        raise ConfigError(f"metric {text!r}: a margin in percent is for rmse and mae; want {name}:{margin:g}")
    return Metric(name, margin, relative)


def fitted(signature: Signature, rows: Reference, aside: tuple[str, ...] = ()) -> Tensors:
    """The rows as a version gets them. `aside`: columns that slice, which it need not know.

    Raises: CheckFailed if they do not fit.
    """
    inputs = examples.texts_as_bytes(rows.inputs)
    try:
        return examples.fit(signature, inputs, is_table=rows.table is not None)
    except CheckFailed:
        left = {name: array for name, array in inputs.items() if name not in aside}
        if not left or len(left) == len(inputs):
            raise
        return examples.fit(signature, left, is_table=rows.table is not None)


def ask(folder: Path, version: Version, inputs: Tensors) -> Answered:
    """Ask a version for all rows, in a process of its own.

    Raises: Unsupported where it has side effects or not one answer for each row, or answers of several
    shapes; LoadFailed, ModelCrashed and others as `Answerer.attempt`.
    """
    if not version.capabilities.side_effect_free:
        raise Unsupported(
            f"{version.key} has side effects, which a holdout would really have: it is not asked"
        )
    with Answerer(folder, version) as answerer:
        found = answerer.attempt(inputs)
    rows = examples.rows_of(inputs)
    good = np.ones(rows, bool)
    good[[failure.row for failure in found.failures]] = False
    why = f"row {found.failures[0].row}: {found.failures[0].error.message}" if found.failures else ""
    if len(found.groups) > 1:
        raise Unsupported(f"{version.key}: the answers have different shapes and cannot be compared")
    outputs = found.groups[0] if found.groups else {}
    finite = np.ones(int(good.sum()), bool)
    for array in outputs.values():
        if array.dtype.kind == "f":
            finite &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        why = why or f"row {np.flatnonzero(good)[~finite][0]}: the answer is no finite number"
        good[np.flatnonzero(good)[~finite]] = False
    return Answered({name: array[finite] for name, array in outputs.items()}, good, why)


def task_of(target: Array, answered: Answered) -> str:
    """Classification or regression, as the answers have it. Raises: ConfigError where it cannot be told."""
    quality = evaluate(target[answered.good], answered.outputs)
    if quality.task not in DEFAULTS:
        raise ConfigError(f"the answers cannot be compared with the target: {quality.absent.get('all')}")
    return quality.task


def metrics_of(target: Array, answered: Answered) -> dict[str, float]:
    """All metrics of the rows that were answered, as registration measures them."""
    return evaluate(target[answered.good], answered.outputs).metrics


def prepared(
    target: Array,
    incumbent: Answered,
    candidate: Answered,
    metrics: tuple[Metric, ...],
    *,
    slice_factor: float = 1.0,
    seed: int = 0,
) -> tuple[tuple[Losses, ...], Array, tuple[str, ...]]:
    """The losses of each metric (the task's defaults for none), the rows that are judged, by index and in
    their order, and what was left out.

    Raises: ConfigError for a metric that was asked for and cannot be had.
    """
    task = task_of(target, incumbent)
    order = np.random.default_rng(seed).permutation(len(target))
    tuning = 0
    if task == REGRESSION:
        tuning = max(_TUNING_LEAST, min(_TUNING_MOST, int(_TUNING_PART * len(target))))
        if tuning >= len(target):
            raise ConfigError(f"{len(target)} rows: {tuning} set the cap of an error, so more are wanted")
    judged, left_out, found = order[tuning:], [], []
    for metric in metrics or DEFAULTS[task]:
        try:
            one, two = (_costs(metric.name, target, each) for each in (incumbent, candidate))
        except ConfigError as error:
            if metrics:
                raise
            left_out.append(f"{metric.name} is not judged: {error.message}")
            continue
        found.append(_losses(metric, one, two, order[:tuning], judged, slice_factor, incumbent))
    if not found:
        raise ConfigError("; ".join(left_out))
    return tuple(found), judged, tuple(left_out)


def sliced(columns: tuple[str, ...], rows: Reference, judged: Array) -> tuple[Slice, ...]:
    """The slices of the judged rows. Raises: ConfigError for a column that is not there."""
    found: list[Slice] = []
    for column in columns:
        values = rows.inputs.get(column)
        if values is None or values.ndim != 1:
            there = [name for name, array in rows.inputs.items() if array.ndim == 1]
            raise ConfigError(f"no column {column!r} to slice by: want one of {there}")
        found += slices_of(column, values[judged])
    return tuple(found)


def _costs(metric: str, target: Array, answered: Answered) -> Array:
    """The loss of each row, NaN for one without an answer."""
    costs = np.full(len(target), np.nan)
    if answered.good.any():
        costs[answered.good] = per_row_loss(metric, target[answered.good], answered.outputs)
    return costs


def _losses(
    metric: Metric,
    one: Array,
    two: Array,
    tuning: Array,
    judged: Array,
    slice_factor: float,
    incumbent: Answered,
) -> Losses:
    margin, cap = (
        metric.margin,
        {"accuracy": 1.0, "log_loss": LOG_CAP, "brier": _brier_cap(incumbent)}.get(metric.name, 0.0),
    )
    if not cap:
        seen = one[tuning][~np.isnan(one[tuning])]
        if not len(seen):
            raise ConfigError(
                f"the incumbent answers none of the {len(tuning)} rows that set the cap of an error"
            )
        errors = np.sqrt(seen) if metric.name == "rmse" else seen
        if metric.relative:
            value = float(np.sqrt(seen.mean()) if metric.name == "rmse" else seen.mean())
            if value == 0.0:
                raise ConfigError(f"the incumbent's {metric.name} is 0: give a margin in its unit")
            margin = metric.margin * value
        cap = max(SPREADS * float(np.median(errors)), 2 * margin * max(slice_factor, 1.0))
        cap = cap**2 if metric.name == "rmse" else cap
    cut = [np.minimum(np.nan_to_num(costs[judged], nan=cap), cap) for costs in (one, two)]
    return Losses(metric.name, margin, cap, *cut)


def _brier_cap(answered: Answered) -> float:
    widths = [a.shape[1] for a in answered.outputs.values() if a.ndim == 2 and a.dtype.kind == "f"]
    return 2.0 if max(widths, default=2) > 2 else 1.0
