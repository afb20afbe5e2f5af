"""Decides whether what a model takes and answers can be served at all: its names, its arrays, its gaps."""

from collections.abc import Callable

import numpy as np

from interlock.core.errors import CheckFailed
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec, label_fault
from interlock.core.table import is_missing
from interlock.runtime.check_stream import Broken


def check_names(signature: Signature) -> None:
    """Raises: CheckFailed for a name that no message can carry, or that is there twice."""
    for role, names in (
        ("input", [spec.name for spec in signature.inputs]),
        ("output", [spec.name for spec in signature.outputs]),
        ("column", list(signature.columns)),
    ):
        for name in names:
            if fault := label_fault(name):
                raise CheckFailed(f"the name of {role} {str(name)[:60]!a} {fault}: rename it")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckFailed(f"{role} {twice[0]!r} is there twice: rename one of the two")


def hold(signature: Signature, answer: Tensors, rows: int) -> None:
    """Raises: Broken if the answer for so many rows is not what the signature says."""
    names = {spec.name for spec in signature.outputs}
    if answer.keys() != names:
        raise Broken(f"outputs {sorted(answer)}, the signature says {sorted(names)}")
    for spec in signature.outputs:
        array = answer[spec.name]
        wanted = (rows, *spec.shape[1:]) if signature.batch_axis == 0 else spec.shape
        if array.dtype != DATATYPES[spec.datatype]:
            raise Broken(f"output {spec.name!r} is {array.dtype}, the signature says {spec.datatype}")
        if len(array.shape) != len(wanted) or any(
            want not in (-1, got) for got, want in zip(array.shape, wanted, strict=True)
        ):
            raise Broken(f"output {spec.name!r} is {list(array.shape)}, want {list(wanted)}")
        if spec.datatype == "BYTES":
            _hold_texts(spec, array)


class Gaps:
    """Counts the answers that are NaN to rows without a missing value."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._answers = {spec.name: 0 for spec in signature.outputs if DATATYPES[spec.datatype].kind == "f"}
        self._missing = dict(self._answers)

    def add(self, inputs: Tensors, answer: Tensors) -> None:
        """One call."""
        whole = ~_any(inputs, self._signature.batch_axis == 0, _gaps)
        for name in self._answers:
            values = answer[name][whole] if self._signature.batch_axis == 0 else answer[name]
            if self._signature.batch_axis == 0 or whole.all():
                self._answers[name] += values.size
                self._missing[name] += int(np.isnan(values).sum())

    def judge(self) -> str:
        """What was seen. Raises: Broken for an output that never is a number."""
        for name, count in self._answers.items():
            if count and self._missing[name] == count:
                raise Broken(
                    f"output {name!r} is NaN in {count} of {count} answers to reference rows without a"
                    " missing value: mend the model, or leave that output out"
                )
        seen = {name: count for name, count in self._missing.items() if count}
        return "".join(f", {name!r} NaN in {count} of {self._answers[name]}" for name, count in seen.items())


def _any(inputs: Tensors, batched: bool, gaps: Callable[[Array], Array]) -> Array:
    """Whether each row has a gap [rows]; of inputs that are not rows, whether any has [1]."""
    found = [gaps(array) for array in inputs.values()]
    if not batched:
        return np.array([any(bool(mask.any()) for mask in found)], np.bool_)
    rows = len(next(iter(inputs.values())))
    result = np.zeros(rows, np.bool_)
    for mask in found:
        result |= mask.reshape(rows, -1).any(axis=1)
    return result


def _gaps(array: Array) -> Array:
    if array.dtype.kind == "f":
        return np.isnan(array)
    if array.dtype.kind == "O":
        return np.array([is_missing(item) for item in array.ravel().tolist()], np.bool_).reshape(array.shape)
    return np.zeros(array.shape, np.bool_)


def _hold_texts(spec: TensorSpec, array: Array) -> None:
    for item in array.ravel().tolist():
        if not isinstance(item, str | bytes):
            raise Broken(
                f"output {spec.name!r} holds a {type(item).__name__}: want numbers, booleans or texts"
            )
