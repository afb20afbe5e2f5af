"""Decides what goes into a boosted model and what comes out, whichever framework's trees they are.

In: one matrix of numbers; or, where a column is categorical, one input a column, whose values become the
codes that the model was trained with. Out: `label` and `probabilities` of classifiers, `prediction` of the
others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import LoadFailed, ShapeMismatch
from interlock.core.model import Array, Signature, Tensors, TensorSpec, datatype_of
from interlock.runtime import table as tables
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES
from interlock.runtime.table import Table

Value = str | int | float | bool


class Shape(msgspec.Struct, frozen=True):
    """What a model file says of itself.

    `columns`: the features' names, none if they are only numbered. `datatype` is of the matrix that the
    framework gets. `categories`: by the index of a feature, its values in the order of their codes.
    `groups`: raw answers a row. `classes`: the labels of a classifier; `multilabel`: each of its raw answers
    is one of its own.
    """

    width: int
    groups: int
    datatype: str
    columns: tuple[str, ...] = ()
    categories: dict[int, tuple[Value, ...]] = {}
    classes: tuple[Value, ...] | None = None
    multilabel: bool = False


class Intake:
    """Makes the matrix [rows, width] of a batch."""

    def __init__(self, shape: Shape, signature: Signature) -> None:
        self._width = shape.width
        self._dtype = np.dtype(np.float32) if shape.datatype == "FP32" else np.dtype(np.float64)
        self._specs = signature.inputs
        self._codes = {
            index: ({_key(value): code for code, value in enumerate(values)}, _is_text(values))
            for index, values in shape.categories.items()
        }
        self.matrix: Callable[[Tensors], Array] = self._table if shape.categories else self._matrix

    def _matrix(self, inputs: Tensors) -> Array:
        rows = inputs[INPUT]
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise ShapeMismatch(
                f"input {INPUT!r}: got {list(rows.shape)}, the signature wants [-1, {self._width}]"
            )
        return np.ascontiguousarray(rows, self._dtype)

    def _table(self, inputs: Tensors) -> Array:
        first = inputs[self._specs[0].name]
        made = np.empty((len(first) if first.ndim else 0, self._width), self._dtype)
        for index, spec in enumerate(self._specs):
            values = inputs[spec.name]
            if values.shape != (len(made), 1):
                raise ShapeMismatch(
                    f"input {spec.name!r}: got {list(values.shape)}, the signature wants [{len(made)}, 1]"
                )
            known = self._codes.get(index)
            made[:, index] = values[:, 0] if known is None else _codes(values[:, 0], *known)
        return made


class Outlet:
    """Makes the outputs of raw answers [rows, groups]."""

    def __init__(self, shape: Shape, signature: Signature) -> None:
        self._names = tuple(spec.name for spec in signature.outputs)
        self._classes = None if shape.classes is None else label_array(shape.classes)
        self._is_binary = shape.groups == 1
        self._multilabel = shape.multilabel

    def answer(self, raw: Array, outputs: tuple[str, ...] | None) -> Tensors:
        """All outputs of the signature, or those that are asked for."""
        names = self._names if outputs is None else outputs
        if self._classes is None:
            return {PREDICTION: raw} if PREDICTION in names else {}
        if self._multilabel:
            chosen, shares = (raw > 0.5).astype(np.int64), raw
        elif self._is_binary:
            chosen, shares = (raw[:, 0] > 0.5).astype(np.intp), np.concatenate((1 - raw, raw), axis=1)
        else:
            chosen, shares = raw.argmax(axis=1), raw
        found: Tensors = {}
        if LABEL in names:
            found[LABEL] = chosen if self._multilabel else self._classes[chosen]
        if PROBABILITIES in names:
            found[PROBABILITIES] = shares
        return found


def signature_of(shape: Shape, options: Mapping[str, Any]) -> Signature:
    """The signature of a model file; datatypes of columns are as in the table of its training data, if known.

    Raises: LoadFailed for a classifier whose classes are not as many as its answers.
    """
    if shape.categories:
        table = _table_of(shape, options)
        inputs, columns = tables.specs(table), table.names
    else:
        inputs = (TensorSpec(INPUT, shape.datatype, (-1, shape.width)),)
        columns = shape.columns or names_of(tables.table_of(options), shape.width)
    if shape.classes is None:
        outputs = (TensorSpec(PREDICTION, shape.datatype, (-1, shape.groups)),)
        return Signature(inputs, outputs, 0, columns)
    count = 2 if shape.groups == 1 and not shape.multilabel else shape.groups
    if len(shape.classes) != count:
        raise LoadFailed(f"the model tells {count} classes apart, and {len(shape.classes)} are named for it")
    label = TensorSpec(LABEL, datatype_of(label_array(shape.classes)), (-1,))
    if shape.multilabel:
        label = TensorSpec(LABEL, "INT64", (-1, count))
    probabilities = TensorSpec(PROBABILITIES, shape.datatype, (-1, count))
    return Signature(inputs, (label, probabilities), 0, columns)


def names_of(table: Table | None, width: int) -> tuple[str, ...]:
    """The columns' names in the training data, for a file without names; none where they do not fit."""
    return table.names if table is not None and len(table.names) == width else ()


def label_array(classes: Sequence[Value]) -> Array:
    """Labels as an array of the datatype that all of them have; texts are objects, as in BYTES tensors."""
    if any(isinstance(value, str) for value in classes):
        made = np.empty(len(classes), np.object_)
        made[:] = [str(value) for value in classes]
        return made
    return np.asarray(classes)


def classes_option(options: Mapping[str, Any]) -> tuple[Value, ...] | None:
    """`options["classes"]`: a list of texts, numbers or truth values. Raises: LoadFailed."""
    found = options.get("classes")
    if found is None:
        return None
    try:
        return tuple(msgspec.convert(found, list[bool | int | float | str]))
    except msgspec.ValidationError as error:
        raise LoadFailed(f"the version's option 'classes' is no list of labels: {error}") from None


def _table_of(shape: Shape, options: Mapping[str, Any]) -> Table:
    """The columns that the model file names, with the datatypes of the training data where those are known.

    A missing number is NaN, so numbers that are categories are floats, and so is all that no data describe.
    """
    known = tables.table_of(options)
    datatypes = dict(known.columns) if known is not None else {}
    names = shape.columns or names_of(known, shape.width)
    if not names:
        raise LoadFailed("the model has categories and no names of columns: give reference data with --data")
    columns = []
    for index, name in enumerate(names):
        if index in shape.categories:
            datatype = "BYTES" if _is_text(shape.categories[index]) else "FP64"
        else:
            datatype = datatypes.get(name, shape.datatype)
            datatype = shape.datatype if datatype == "BYTES" else datatype
        columns.append((name, datatype))
    return Table(tuple(columns))


def _codes(values: Array, codes: Mapping[Any, int], is_text: bool) -> Array:
    """The code of each value; NaN for what is missing and for what training did not know."""
    if is_text:
        keys = [value.encode() if isinstance(value, str) else value for value in values.tolist()]
    else:
        keys = values.astype(np.float64).tolist()
    return np.array([codes.get(key, np.nan) for key in keys], np.float64)


def _key(value: Value) -> Any:
    return value.encode() if isinstance(value, str) else float(value)


def _is_text(values: tuple[Value, ...]) -> bool:
    return any(isinstance(value, str) for value in values)
