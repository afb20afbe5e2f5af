"""Decides whether the answers of two versions agree, and whether each is sound; for many pairs at once.

Pure. Pairs whose answers came in the same two batches are compared together, for a call into NumPy costs as
much for a hundred rows as for one.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec
from interlock.core.route import Mirror
from interlock.serving.block import AGREED, DISAGREED, UNSOUND_BETTER, UNSOUND_BOTH, UNSOUND_WORSE

Answers = tuple[Tensors, int, int | None]
"""The outputs of a batch, and the rows of one request in it; `None`: all of it, which has no rows."""


class Agreement:
    """What is compared between the candidate and the incumbent. `ours` and `theirs` are their signatures, in
    either order: an output counts where both have it."""

    def __init__(self, mirror: Mirror, ours: Signature, theirs: Signature) -> None:
        names = {(spec.name, spec.datatype) for spec in theirs.outputs}
        shared = [spec for spec in ours.outputs if (spec.name, spec.datatype) in names]
        labels = [spec.name for spec in shared if _kind(spec) != "f"]
        self._compared = labels[:1] or [spec.name for spec in shared]
        self._tolerance = mirror.tolerance
        both = {spec.name: spec for spec in (*ours.outputs, *theirs.outputs)}
        self._finite = [name for name, spec in both.items() if _kind(spec) == "f"]
        self._ranges = [
            one for one in mirror.ranges if one.output in both and _kind(both[one.output]) in "fiu"
        ]

    def count(self, pairs: Sequence[tuple[Answers, Answers]], cells: Any) -> None:
        """Add the pairs, each (candidate, incumbent), to the cells of the candidate's row."""
        groups: dict[tuple[int, int], list[tuple[Answers, Answers]]] = {}
        for pair in pairs:
            groups.setdefault((id(pair[0][0]), id(pair[1][0])), []).append(pair)
        for group in groups.values():
            candidate = _Rows([pair[0] for pair in group])
            incumbent = _Rows([pair[1] for pair in group])
            agree = self._agree(candidate, incumbent)
            if agree is not None:
                disagreed = int(candidate.whose(~agree).sum())
                cells[DISAGREED] += disagreed
                cells[AGREED] += len(group) - disagreed
            ours, theirs = self._unsound(candidate), self._unsound(incumbent)
            if ours is not None or theirs is not None:
                wrong = np.zeros(len(group), np.bool_)
                ours, theirs = wrong if ours is None else ours, wrong if theirs is None else theirs
                cells[UNSOUND_WORSE] += int((ours & ~theirs).sum())
                cells[UNSOUND_BETTER] += int((theirs & ~ours).sum())
                cells[UNSOUND_BOTH] += int((ours & theirs).sum())

    def _agree(self, candidate: "_Rows", incumbent: "_Rows") -> Array | None:
        """Which rows agree; None where nothing can be compared."""
        agree: Array | None = None
        for name in self._compared:
            ours, theirs = candidate.of(name), incumbent.of(name)
            if ours is None or theirs is None:
                continue  # the client did not ask for it
            if ours.shape != theirs.shape:
                return np.zeros(len(ours), np.bool_)
            same = _rowwise(self._near(ours, theirs) if ours.dtype.kind == "f" else ours == theirs)
            agree = same if agree is None else agree & same
        return agree

    def _near(self, ours: Array, theirs: Array) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            near: Array = np.abs(ours - theirs) <= self._tolerance * np.maximum(1.0, np.abs(theirs))
        if near.all() and np.isfinite(theirs).all():
            return near
        # What is not finite agrees with its like, of which a difference says nothing.
        same: Array = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return np.where(np.isfinite(ours) & np.isfinite(theirs), near, same)

    def _unsound(self, rows: "_Rows") -> Array | None:
        """Which of the requests have an unsound answer; None for none of them."""
        wrong: Array | None = None
        for name in self._finite:
            values = rows.of(name)
            if values is not None and not (finite := np.isfinite(values)).all():
                wrong = _either(wrong, ~_rowwise(finite))
        for one in self._ranges:
            values = rows.of(one.output)
            if values is None:
                continue
            if one.least is not None:
                wrong = _either(wrong, ~_rowwise(~(values < one.least)))
            if one.greatest is not None:
                wrong = _either(wrong, ~_rowwise(~(values > one.greatest)))
        return None if wrong is None or not wrong.any() else rows.whose(wrong)


class _Rows:
    """The rows of several requests in the outputs of one batch; where there are no rows, all of it is one."""

    __slots__ = ("_batch", "_count", "_owner", "_rows")

    def __init__(self, answers: list[Answers]) -> None:
        self._batch, start, stop = answers[0]
        self._count = len(answers)
        self._rows: Array | None = None
        self._owner: Array | None = None
        if stop is None:
            return
        spans = [(start, stop) for _, start, stop in answers if stop is not None]
        if all(stop - start == 1 for start, stop in spans):
            self._rows = np.array([start for start, _ in spans])
        else:
            self._rows = np.concatenate([np.arange(start, stop) for start, stop in spans])
            self._owner = np.repeat(np.arange(len(spans)), [stop - start for start, stop in spans])

    def of(self, name: str) -> Array | None:
        """One output: [rows, values]; text as bytes, in whichever way the model wrote it."""
        array = self._batch.get(name)
        if array is None:
            return None
        rows = array[None] if self._rows is None else array[self._rows]
        rows = rows.reshape(len(rows), prod(rows.shape[1:]))
        if rows.dtype.kind in "OSU":
            text = [value.encode() if isinstance(value, str) else value for value in rows.ravel().tolist()]
            made = np.empty(len(text), np.object_)
            made[:] = text
            rows = made.reshape(rows.shape)
        return rows

    def whose(self, rows: Array) -> Array:
        """Which requests have one of the `rows` that are True."""
        if self._owner is None:
            return rows
        found = np.zeros(self._count, np.bool_)
        found[self._owner[rows]] = True
        return found


def _rowwise(values: Array) -> Array:
    """For which rows all values are True."""
    return np.asarray(np.all(values, axis=1))


def _either(one: Array | None, other: Array) -> Array:
    return other if one is None else one | other


def _kind(spec: TensorSpec) -> str:
    return DATATYPES[spec.datatype].kind
