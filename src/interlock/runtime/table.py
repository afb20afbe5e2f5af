"""Decides how a model that was trained on a DataFrame gets one again: columns, datatypes and categories."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, LoadFailed
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec
from interlock.core.table import MISSING

OPTION = "table"
"""The key of a version's options that holds its Table."""

MOST_COLUMNS = 1024
"""Columns of a table of which each is an input; a table of numbers, which is one input, has no such limit."""


class Table(msgspec.Struct, frozen=True):
    """The columns of the data that a model was registered with.

    `columns`: name and datatype of each, in order. `categories`: the values of the columns that pandas calls
    categorical, in their order. `none`: the columns of texts in which a missing one is None; elsewhere NaN.
    """

    columns: tuple[tuple[str, str], ...]
    categories: dict[str, tuple[str | int | float | bool, ...]] = {}
    none: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    @property
    def is_numeric(self) -> bool:
        """Whether one tensor of floats can hold the table as the model knows it."""
        return not self.categories and all(datatype != "BYTES" for _, datatype in self.columns)


def table_of(options: Mapping[str, Any]) -> Table | None:
    """The table in a version's options, if there is one.

    Raises: LoadFailed if it is not a table.
    """
    found = options.get(OPTION)
    if found is None:
        return None
    try:
        return msgspec.convert(found, Table)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"the version's option 'table' is no table: {error}") from None


def with_columns(signature: Signature, table: Table | None) -> Signature:
    """The signature with the names of its columns, where it is a table's and does not say so: one input of
    the width of `table`, whose columns are all numbers, or inputs that are one column [-1, 1] each."""
    if signature.columns or signature.batch_axis != 0:
        return signature
    shapes = [spec.shape for spec in signature.inputs]
    names = tuple(spec.name for spec in signature.inputs)
    is_one_column = table is not None and table.names == names
    if (len(shapes) > 1 or is_one_column) and all(shape == (-1, 1) for shape in shapes):
        return msgspec.structs.replace(signature, columns=names)
    if table is not None and table.is_numeric and shapes == [(-1, len(table.columns))]:
        if signature.inputs[0].datatype != "BYTES":
            return msgspec.structs.replace(signature, columns=table.names)
    return signature


def as_fitted(table: Table | None, columns: tuple[str, ...]) -> Table | None:
    """Of the reference data's table the columns that a model was fitted on, in its order; all of it for a
    model that does not say.

    Raises: CheckFailed with those that the data do not have.
    """
    if table is None or not columns:
        return table
    known = dict(table.columns)
    missing = [name for name in columns if name not in known]
    if missing:
        raise CheckFailed(
            f"the model was fitted on the columns {list(columns[:20])}, and the reference data have no"
            f" {missing[:20]}: they have {list(known)[:20]}"
        )
    return msgspec.structs.replace(
        table,
        columns=tuple((name, known[name]) for name in columns),
        categories={name: values for name, values in table.categories.items() if name in columns},
        none=tuple(name for name in table.none if name in columns),
    )


def specs(table: Table) -> tuple[TensorSpec, ...]:
    """One input [-1, 1] for each column.

    Raises: LoadFailed above MOST_COLUMNS.
    """
    if len(table.columns) > MOST_COLUMNS:
        raise LoadFailed(
            f"the data have {len(table.columns)} columns that are not all numbers, and each would be an"
            f" input: the limit is {MOST_COLUMNS}; encode them as numbers, which are one input"
        )
    return tuple(TensorSpec(name, datatype, (-1, 1)) for name, datatype in table.columns)


def frame(table: Table, columns: Mapping[str, Array]) -> Any:
    """The DataFrame [rows, columns] of a batch; `columns` are [rows] or [rows, 1] each."""
    import pandas

    made = {}
    for name, datatype in table.columns:
        values = columns[name].reshape(-1)
        if datatype == "BYTES":
            values = _texts(values, None if name in table.none else np.nan)
        elif name not in table.categories and values.dtype != DATATYPES[datatype]:
            values = _as(values, DATATYPES[datatype])
        if name in table.categories:
            made[name] = pandas.Categorical(values, categories=list(table.categories[name]))
        else:
            made[name] = values
    return pandas.DataFrame(made, copy=False)


def frame_of_matrix(table: Table, matrix: Array) -> Any:
    """The same from one tensor [rows, columns]."""
    return frame(table, {name: matrix[:, index] for index, (name, _) in enumerate(table.columns)})


def split(inputs: Tensors, table: Table, only: str) -> dict[str, Array]:
    """Columns [rows] by name, whichever form a batch has; `only`: the name of the one tensor."""
    if set(inputs) == {only} and table.names != (only,):
        matrix = inputs[only]
        return {name: matrix[:, index] for index, name in enumerate(table.names)}
    return {name: inputs[name].reshape(-1) for name in table.names}


def _texts(values: Array, missing: float | None) -> Array:
    made = np.empty(len(values), np.object_)
    made[:] = [
        missing if text == MISSING else text.decode(errors="replace") if isinstance(text, bytes) else text
        for text in values.tolist()
    ]
    return made


def _as(values: Array, dtype: np.dtype[Any]) -> Array:
    """Whole numbers again, where floats carried them and none is missing."""
    if dtype.kind == "f" or values.dtype.kind != "f":
        return values.astype(dtype)
    with np.errstate(invalid="ignore"):
        made = values.astype(dtype)
    return made if np.array_equal(made, values) else values
