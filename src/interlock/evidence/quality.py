"""Decides how good a model's answers are, row by row and as metrics, against the answers that are known.

Definitions are scikit-learn's (`sklearn.metrics`), which the tests compare with. What a metric cannot be
computed from is said, never guessed: it is absent, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.core.provenance import Quality
from interlock.core.table import is_missing

CLASSIFICATION, REGRESSION = "classification", "regression"

HIGHER_IS_BETTER = {
    "accuracy": True,
    "log_loss": False,
    "roc_auc": True,
    "brier": False,
    "rmse": False,
    "mae": False,
    "r2": True,
}
"""Every metric, and whether more of it is better."""

_OF = {CLASSIFICATION: ("accuracy", "log_loss", "roc_auc", "brier"), REGRESSION: ("rmse", "mae", "r2")}
_SUM_TOLERANCE = 1e-3
"""By how much a row of probabilities may miss 1: scikit-learn's own bound is the square root of a datatype's
resolution, 3e-4 in float32, and models of float16 are coarser."""


class Absent(Exception):
    """A metric cannot be computed; the words say why."""


class Reading(msgspec.Struct, frozen=True):
    """Which answers are what. `labels` [rows] are class numbers within `classes`, -1 for a label that is none
    of them; `probabilities` is [rows, classes]; `values` [rows] are a regressor's. `why`: what lacks."""

    task: str
    target: Array
    classes: tuple[Any, ...] = ()
    labels: Array | None = None
    probabilities: Array | None = None
    values: Array | None = None
    why: str = ""


def evaluate(target: Array, outputs: Mapping[str, Array], classes: Sequence[Any] | None = None) -> Quality:
    """All metrics of a model's outputs; `target` is [rows], each output has as many rows.

    Classification: accuracy, log loss, ROC AUC (of two classes, or the mean of one against the rest), Brier
    score (of more than two classes: the sum over them). Regression: RMSE, MAE, R2. `classes`: the label of
    each column of probabilities, if that is known.
    >>> evaluate(np.array([1.0, 2.0]), {"y": np.array([1.0, 4.0])}).metrics["mae"]
    1.0
    """
    try:
        reading = read(target, outputs, classes)
    except Absent as why:
        return Quality("", len(target), {}, {"all": str(why)})
    metrics, absent = {}, {}
    for name in _OF[reading.task]:
        try:
            metrics[name] = _METRICS[name](reading)
        except Absent as why:
            absent[name] = str(why)
    return Quality(reading.task, len(target), metrics, absent)


def per_row_loss(
    metric: str, target: Array, outputs: Mapping[str, Array], classes: Sequence[Any] | None = None
) -> Array:
    """What each row costs, [rows] float64; less is better, and the mean is the metric's loss.

    accuracy: 1 for a wrong label; rmse: the squared error, whose mean's root is the metric; the others as
    `evaluate` has them. ROC AUC and R2 are no means over rows and have none.
    Raises: ConfigError for a metric that does not exist, is no mean over rows, or cannot be computed.
    >>> per_row_loss("rmse", np.array([1.0, 2.0]), {"y": np.array([1.0, 4.0])}).tolist()
    [0.0, 4.0]
    """
    if metric not in _LOSSES:
        raise ConfigError(f"metric {metric!r} has no loss for each row: want one of {', '.join(_LOSSES)}")
    try:
        reading = read(target, outputs, classes)
        if metric not in _OF[reading.task]:
            raise Absent(f"the answers are those of a {reading.task}; it has {', '.join(_OF[reading.task])}")
        return _LOSSES[metric](reading)
    except Absent as why:
        raise ConfigError(f"metric {metric!r} cannot be computed: {why}") from None


def read(target: Array, outputs: Mapping[str, Array], classes: Sequence[Any] | None = None) -> Reading:
    """Find labels, probabilities or values among the outputs.

    A matrix [rows, k > 1] of floats in 0..1 whose rows sum to 1 are probabilities; whole numbers, texts and
    booleans are labels; floats are values, or the probability of 1 where the target has 0 and 1 only.
    Raises: Absent, with the reason.
    """
    target = np.asarray(target)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise Absent(f"the target has shape {list(target.shape)}, want one answer a row")
    lengths = {name: len(array) if array.ndim else 0 for name, array in outputs.items()}
    if not lengths or set(lengths.values()) != {len(target)}:
        raise Absent(f"the outputs have {lengths} rows, the target {len(target)}")
    if not len(target):
        raise Absent("there are no rows")
    lacking = sum(map(is_missing, target.tolist())) if target.dtype.kind in "fO" else 0
    if lacking:
        raise Absent(f"{lacking} of {len(target)} rows have no answer in the target")
    matrices = [a for a in outputs.values() if a.dtype.kind == "f" and a.ndim == 2 and a.shape[1] > 1]
    vectors = [a.reshape(-1) for a in outputs.values() if a.size == len(target)]
    labels = [v for v in vectors if v.dtype.kind != "f"]
    values = [v for v in vectors if v.dtype.kind == "f"]
    if matrices or (labels and not values):
        return _classification(target, labels, matrices, classes)
    if not values:
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        raise Absent(f"the outputs {shapes} hold no label, no probabilities and no value for each row")
    if len(values) > 1:
        raise Absent(f"the model answers {len(values)} values a row, the target has one")
    value = values[0].astype(np.float64)
    if _is_zero_or_one(target) and bool(np.all((value >= 0) & (value <= 1))):
        return _classification(target, labels, [np.column_stack([1 - value, value])], (0, 1))
    if target.dtype.kind not in "biuf":
        target = _as_numbers(target)
    return Reading(REGRESSION, target.astype(np.float64), values=value)


def _classification(
    target: Array, labels: list[Array], matrices: list[Array], classes: Sequence[Any] | None
) -> Reading:
    if len(labels) > 1 or len(matrices) > 1:
        raise Absent(f"{len(labels)} outputs could be the label and {len(matrices)} the probabilities")
    given = _plain(target)
    said = _plain(labels[0]) if labels else None
    if said is not None and said.dtype.kind != given.dtype.kind:
        given, said = _as_numbers(given), _as_numbers(said)
    scores = matrices[0] if matrices else None
    if scores is None:
        assert said is not None
        known = np.unique(np.concatenate([given, said]))
        return Reading(
            CLASSIFICATION,
            _numbers_of(given, known),
            tuple(known.tolist()),
            _numbers_of(said, known),
            why="the model answers labels, no probabilities",
        )
    known = _columns(given, said, scores, classes)
    numbers = _numbers_of(given, known)
    why = _why_no_probabilities(scores)
    found = _numbers_of(said, known) if said is not None else np.argmax(scores, axis=1)
    if said is None and not np.isfinite(scores).all():
        raise Absent(why)
    strange = np.flatnonzero(numbers < 0)
    if len(strange):
        why = why or f"the target has {given[strange[0]]!s}, which is none of the model's classes"
    return Reading(
        CLASSIFICATION, numbers, tuple(known.tolist()), found, scores if not why else None, why=why
    )


def _columns(given: Array, said: Array | None, scores: Array, classes: Sequence[Any] | None) -> Array:
    """The class of each column of probabilities."""
    width = scores.shape[1]
    if classes is not None:
        known = _plain(np.asarray(list(classes)))
        if len(known) != width:
            raise Absent(f"{len(known)} classes are named, and the model answers {width} probabilities")
        return _as_numbers(known) if known.dtype.kind != given.dtype.kind else known
    seen = np.unique(given if said is None else np.concatenate([given, said]))
    if len(seen) == width:
        return seen
    if seen.dtype.kind == "f" and bool(np.all((seen >= 0) & (seen < width) & (seen == np.floor(seen)))):
        return np.arange(width, dtype=np.float64)
    raise Absent(
        f"the model answers {width} probabilities, and the rows show {len(seen)} classes: which column is "
        "which cannot be told"
    )


def _why_no_probabilities(scores: Array) -> str:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        return f"row {bad[0]} has a probability that is no number"
    low, high = float(scores.min()), float(scores.max())
    off = float(np.abs(scores.astype(np.float64).sum(axis=1) - 1).max())
    if low < 0 or high > 1 or off > _SUM_TOLERANCE:
        return f"the scores ({low:.3g} to {high:.3g}, sums off 1 by up to {off:.3g}) are no probabilities"
    return ""


def _plain(values: Array) -> Array:
    """Labels as float64 or str, whichever they are."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    items = values.tolist()
    if all(isinstance(item, bool | int | float | np.number) for item in items):
        return np.array(items, np.float64)
    return np.array([i.decode(errors="replace") if isinstance(i, bytes) else str(i) for i in items])


def _as_numbers(values: Array) -> Array:
    if values.dtype.kind == "f":
        return values
    try:
        return np.array([float(value) for value in values.tolist()])
    except (TypeError, ValueError):
        raise Absent(
            f"the target or the labels are texts ({str(values[0])[:40]!r}), the other side numbers"
        ) from None


def _numbers_of(values: Array, known: Array) -> Array:
    """The place of each value in `known`, -1 where it is not there."""
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
    return np.where(known[order][place] == values, order[place], -1)


def _is_zero_or_one(target: Array) -> bool:
    return target.dtype.kind in "biuf" and bool(np.all((target == 0) | (target == 1)))


def _wrong(reading: Reading) -> Array:
    assert reading.labels is not None
    wrong: Array = (reading.labels != reading.target) | (reading.target < 0)
    return wrong.astype(np.float64)


def _probabilities(reading: Reading) -> Array:
    if reading.probabilities is None:
        raise Absent(reading.why)
    return reading.probabilities


def _log_losses(reading: Reading) -> Array:
    scores = _probabilities(reading)
    tiny = np.finfo(scores.dtype).eps
    chosen = scores[np.arange(len(scores)), reading.target].astype(np.float64)
    return -np.log(np.clip(chosen, tiny, 1 - tiny))


def _brier_losses(reading: Reading) -> Array:
    scores = _probabilities(reading).astype(np.float64)
    if scores.shape[1] == 2:
        positive: Array = reading.target == 1
        two: Array = (scores[:, 1] - positive) ** 2
        return two
    truth = np.zeros_like(scores)
    truth[np.arange(len(scores)), reading.target] = 1.0
    squared: Array = ((scores - truth) ** 2).sum(axis=1)
    return squared


def _roc_auc(reading: Reading) -> float:
    scores = _probabilities(reading)
    for number, name in enumerate(reading.classes):
        if not (reading.target == number).any():
            raise Absent(f"no row is of class {_shown(name)}")
    if scores.shape[1] == 2:
        return _area(reading.target == 1, scores[:, 1])
    return float(np.mean([_area(reading.target == k, scores[:, k]) for k in range(scores.shape[1])]))


def _area(positive: Array, scores: Array) -> float:
    """The share of (positive, negative) pairs in the right order, ties half: Mann and Whitney (1947)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = int(positive.sum())
    below = len(positive) - above
    return float((ranks[place][positive].sum() - above * (above + 1) / 2) / (above * below))


def _errors(reading: Reading) -> Array:
    assert reading.values is not None
    bad = np.flatnonzero(~np.isfinite(reading.values))
    if len(bad):
        raise Absent(f"row {bad[0]} has the answer {reading.values[bad[0]]}")
    return reading.values - reading.target


def _r2(reading: Reading) -> float:
    squares = float((_errors(reading) ** 2).sum())
    spread = float(((reading.target - reading.target.mean()) ** 2).sum())
    if spread == 0.0:
        raise Absent("the target is the same in every row")
    return 1.0 - squares / spread


def _shown(name: Any) -> str:
    return f"{name:g}" if isinstance(name, float) else repr(name)


_LOSSES: dict[str, Callable[[Reading], Array]] = {
    "accuracy": _wrong,
    "log_loss": _log_losses,
    "brier": _brier_losses,
    "rmse": lambda reading: _errors(reading) ** 2,
    "mae": lambda reading: np.abs(_errors(reading)),
}

_METRICS: dict[str, Callable[[Reading], float]] = {
    "accuracy": lambda reading: 1.0 - float(_wrong(reading).mean()),
    "log_loss": lambda reading: float(_log_losses(reading).mean()),
    "roc_auc": _roc_auc,
    "brier": lambda reading: float(_brier_losses(reading).mean()),
    "rmse": lambda reading: float(np.sqrt((_errors(reading) ** 2).mean())),
    "mae": lambda reading: float(np.abs(_errors(reading)).mean()),
    "r2": _r2,
}
