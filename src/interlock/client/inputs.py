"""Decides how arrays, rows, records or a DataFrame become the inputs of a model; pure.

Columns that have names travel by name, one input a column, also to a model that takes them as one tensor:
what the client remembers of their order may be that of another version.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from interlock.client.views import Metadata, Tensor
from interlock.core.errors import DatatypeMismatch, InputMismatch, ShapeMismatch
from interlock.core.model import DATATYPES, Array, Signature
from interlock.core.table import cast, conform


class Sent(msgspec.Struct, frozen=True):
    """One input as it goes out."""

    name: str
    datatype: str
    array: Array


_EXACT = 2.0**53
"""From here on a float does not hold each integer."""


def inputs_of(data: Any, metadata: Metadata) -> list[Sent]:
    """The inputs that ask a model about `data`.

    `data`: an array or a list of rows, for a model with one input or a table; one row alone; columns or
    inputs by name (a dict of arrays or lists, a DataFrame); or a list of records (dicts).
    Raises: InputMismatch, ShapeMismatch, DatatypeMismatch, before anything is sent.
    >>> metadata = Metadata("m", (Tensor("x", "FP32", (-1, 2)),))
    >>> inputs_of([[1, 2.5]], metadata)[0].array
    array([[1. , 2.5]], dtype=float32)
    """
    if not metadata.inputs:
        raise InputMismatch(f"model '{metadata.name}' has no inputs")
    named = _named(data)
    if named is None:
        return _unnamed(data, metadata)
    names = [spec.name for spec in metadata.inputs]
    if metadata.columns and set(named) != set(names[:1]):
        return _columns({name: _array(name, values) for name, values in named.items()}, metadata)
    if len(names) == 1 and names[0] not in named and not (isinstance(data, dict)):
        # A table for a model that has no names for its columns: their order is all there is.
        columns = [_array(name, values).reshape(-1, 1) for name, values in named.items()]
        return [_one(metadata.inputs[0], _side_by_side(columns))]
    unknown = [name for name in named if name not in names]
    missing = [name for name in names if name not in named]
    if unknown or missing:
        parts = [f"no input {unknown[0]!r}"] if unknown else []
        parts += [f"input {missing[0]!r} is missing"] if missing else []
        raise InputMismatch(f"{'; '.join(parts)}; the inputs of '{metadata.name}' are {', '.join(names)}")
    return [_one(spec, _array(spec.name, named[spec.name])) for spec in metadata.inputs]


def _named(data: Any) -> dict[str, Any] | None:
    """Values by name; None where nothing has a name."""
    if _is_frame(data):
        # Without an import: a caller that has a DataFrame has pandas.
        return {str(name): data.iloc[:, at].to_numpy() for at, name in enumerate(data.columns)}
    if isinstance(data, Mapping):
        return {str(name): values for name, values in data.items()}
    if isinstance(data, list | tuple) and data and isinstance(data[0], Mapping):
        names = {str(name): None for record in data if isinstance(record, Mapping) for name in record}
        for row, record in enumerate(data):
            if not isinstance(record, Mapping):
                raise InputMismatch(f"row {row} is a {type(record).__name__}; the first one is a record")
        return {name: [record.get(name) for record in data] for name in names}
    return None


def _is_frame(data: Any) -> bool:
    kind = type(data)
    return kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas"


def _unnamed(data: Any, metadata: Metadata) -> list[Sent]:
    if len(metadata.inputs) == 1:
        spec = metadata.inputs[0]
        return [_one(spec, _array(spec.name, data))]
    columns = metadata.columns
    if not columns:
        raise InputMismatch(
            f"model '{metadata.name}' has {len(metadata.inputs)} inputs: give a dict of values by name, for "
            f"{', '.join(spec.name for spec in metadata.inputs)}"
        )
    table = data if isinstance(data, np.ndarray) else _rows(data, len(columns))
    if table.ndim == 1:
        table = table.reshape(1, -1)
    return _columns({"rows": table}, metadata)


def _rows(data: Any, width: int) -> Array:
    """A table of Python values, each with the type that it has."""
    if not isinstance(data, list | tuple):
        return np.asarray(data)
    rows = list(data) if data and isinstance(data[0], list | tuple | np.ndarray) else [data]
    table = np.empty((len(rows), width), np.object_)
    for index, row in enumerate(rows):
        if not isinstance(row, list | tuple | np.ndarray) or len(row) != width:
            came = f"{len(row)} values" if isinstance(row, list | tuple) else f"a {type(row).__name__}"
            raise ShapeMismatch(f"row {index} has {came}; the model has {width} columns")
        table[index] = row
    return table


def _columns(sent: dict[str, Array], metadata: Metadata) -> list[Sent]:
    columns = metadata.columns
    signature = Signature(columns, (), 0, tuple(spec.name for spec in columns))
    made = conform(signature, {name: _exact(array) for name, array in sent.items()})
    return [Sent(spec.name, spec.datatype, made[spec.name]) for spec in columns]


def _exact(array: Array) -> Array:
    """Objects that are all integers as such: `cast` takes other objects as floats, which hold 53 bits."""
    if array.dtype.kind == "O" and array.ndim == 1:
        kinds = set(map(type, array.tolist()))
        if kinds and all(issubclass(kind, int | np.integer) for kind in kinds):
            made = np.asarray(array.tolist())
            return made if made.dtype.kind in "biu" else array
    return array


def _one(spec: Tensor, array: Array) -> Sent:
    wanted = DATATYPES.get(spec.datatype)
    if wanted is None:
        raise DatatypeMismatch(f"input '{spec.name}' is {spec.datatype}, which this client does not know")
    if array.dtype != wanted or wanted.kind == "O":
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        flat = cast(spec.name, _exact(array.ravel()), spec.datatype, "input")
        array = flat.reshape(array.shape)
    return Sent(spec.name, spec.datatype, _fitted(spec.shape, array))


def _fitted(wanted: tuple[int, ...], array: Array) -> Array:
    """One row given alone gets its axis, and so does a plain list for a column."""
    if array.ndim == len(wanted) - 1:
        if array.ndim and wanted[-1] == 1:
            return array.reshape(*array.shape, 1)
        if wanted[0] in (-1, 1):
            return array.reshape(1, *array.shape)
    if array.ndim == len(wanted) + 1 and array.shape[-1] == 1:
        return array.reshape(array.shape[:-1])
    return array


def _array(name: str, values: Any) -> Array:
    """Any values as an array; texts and mixed values stay the objects that they are."""
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, list | tuple):
        return np.asarray([values] if isinstance(values, str | bytes) or np.ndim(values) == 0 else values)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise ShapeMismatch(f"input '{name}': the rows have different lengths; want the same") from None
    if array.dtype.kind in "SU":
        # NumPy would write numbers out among texts, and cut the zeros off the end of bytes.
        return np.array(values, np.object_)
    if array.dtype.kind == "f" and (np.abs(array) >= _EXACT).any():
        return np.array(values, np.object_)  # integers of which some fit only into UINT64 become floats
    return array


def _side_by_side(columns: Sequence[Array]) -> Array:
    if not columns:
        raise InputMismatch("the rows have no columns: want at least one value in each")
    rows = {len(column) for column in columns}
    if len(rows) > 1:
        raise ShapeMismatch(f"the columns have different numbers of rows: {sorted(rows)}; want the same")
    if all(column.dtype.kind in "biuf" for column in columns):
        return np.concatenate(columns, axis=1)
    made = np.empty((rows.pop(), len(columns)), np.object_)
    made.reshape(-1)[:] = list(chain.from_iterable(zip(*(c.ravel().tolist() for c in columns), strict=True)))
    return made
