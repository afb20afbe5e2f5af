"""Decides how the columns of an Arrow table become a model's inputs, and its outputs columns.

A tabular model takes its columns by name (`core/table.py`). Of any other, each input is one column: numbers,
truth values, texts, or lists of them. An output [rows] or [rows, 1] is a plain column, [rows, k] lists of k.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import numpy as np

from interlock.core import table
from interlock.core.errors import ConfigError, DatatypeMismatch, InputMismatch, ShapeMismatch
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec
from interlock.operations.arrow import pyarrow as pa

ERROR = "error"
"""The column with a row's error, where rows without an answer are let through."""
_SHOWN = 20


def columns_wanted(signature: Signature, there: list[str]) -> list[str]:
    """The columns of a file that a model takes, in the model's order.

    Raises: InputMismatch with the names that the file does not have.
    """
    names = [spec.name for spec in signature.inputs]
    wanted = list(signature.columns) or names
    if table.is_matrix(signature) and names[0] in there and not set(wanted) <= set(there):
        wanted = names  # all columns of the model as one column of lists
    missing = [name for name in wanted if name not in there]
    if missing:
        plain = {name.lower(): name for name in there}
        near = {name: get_close_matches(name.lower(), plain, n=1) for name in missing[:_SHOWN]}
        hint = "".join(
            f"; did you mean '{plain[found[0]]}' for '{name}'?" for name, found in near.items() if found
        )
        raise InputMismatch(
            f"the input has no column {_names(missing)}, which the model takes{hint}; it has {_names(there)}"
        )
    return wanted


def columns_kept(keep: Iterable[str], there: list[str], signature: Signature, with_errors: bool) -> list[str]:
    """The columns of the file that the output is to have, too; `["all"]` is every one.

    Raises: ConfigError for a column that the file does not have, or that an output is called like.
    """
    keep = list(dict.fromkeys(keep))
    kept = list(there) if keep == ["all"] and "all" not in there else keep
    missing = [name for name in kept if name not in there]
    if missing:
        raise ConfigError(f"--keep: the input has no column {_names(missing)}; it has {_names(there)}")
    made = [spec.name for spec in signature.outputs] + [ERROR] * with_errors
    twice = [name for name in kept if name in made]
    if twice:
        raise ConfigError(
            f"--keep: {_names(twice)} would be there twice, for the model answers {_names(made)}"
        )
    return kept


def inputs_of(signature: Signature, rows: Any) -> Tensors:
    """The inputs of a model from the columns of an Arrow table that it takes.

    Raises: DatatypeMismatch, ShapeMismatch, with the column's name.
    """
    columns = list(zip(rows.column_names, rows.columns, strict=True))
    if signature.columns and rows.column_names == list(signature.columns):
        return table.conform(signature, {name: _plain(name, column) for name, column in columns})
    specs = {spec.name: spec for spec in signature.inputs}
    return {name: _input(specs[name], column) for name, column in columns}


def table_of(signature: Signature, groups: Iterable[Tensors]) -> Any:
    """Outputs as an Arrow table: texts are strings, or binary where they are no UTF-8; MISSING is null."""
    groups = list(groups)
    columns: dict[str, Any] = {}
    for spec in signature.outputs:
        parts = [_column(spec, group[spec.name]) for group in groups]
        kind = _settled([part.type for part in parts]) if parts else column_type(spec)
        columns[spec.name] = pa.chunked_array(
            [part if part.type == kind else part.cast(kind) for part in parts], kind
        )  # a cast, needed or not, imports pyarrow.compute, which takes long
    return pa.table(columns)


def column_type(spec: TensorSpec, texts: Any = None) -> Any:
    """The Arrow type of an output's column; `texts`: of its texts, strings by default."""
    dtype = DATATYPES[spec.datatype]
    kind = (texts or pa.string()) if spec.datatype == "BYTES" else pa.from_numpy_dtype(dtype)
    inner = spec.shape[1:]
    for length in reversed(() if inner == (1,) else inner):
        kind = pa.list_(kind, length) if length >= 0 else pa.list_(kind)
    return kind


def unified(tables: list[Any]) -> Any:
    """The schema that all parts of an output can be cast to: binary where one part's texts are."""
    first = tables[0]
    return pa.schema(
        [pa.field(name, _settled([schema.field(name).type for schema in tables])) for name in first.names]
    )


def _settled(kinds: list[Any]) -> Any:
    return next((kind for kind in kinds if "binary" in str(kind)), kinds[0])


def _plain(name: str, column: Any) -> Array:
    """A column [rows] as NumPy has it: None for a missing text, NaN for a missing number."""
    column = _decoded(column)
    kind = column.type
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_null(kind):
        return np.full(len(column), None, np.object_)
    if _is_text(kind):
        return np.asarray(column.cast(pa.large_binary()))
    if pa.types.is_boolean(kind):
        return np.asarray(column)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DatatypeMismatch(
            f"column '{name}' is {kind}: a model takes numbers, truth values, texts, and lists of them"
        )
    parts = [_numbers(part) for part in getattr(column, "chunks", [column])]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind.to_pandas_dtype()), *parts])


def _numbers(part: Any) -> Array:
    """Numbers [rows] of one Arrow array, NaN where there is none: a view of its memory, where it can be.

    Arrow's own way to NumPy imports pandas first, which takes longer than to read many a file.
    """
    valid, data = part.buffers()
    values = np.frombuffer(data or b"", part.type.to_pandas_dtype())[part.offset : part.offset + len(part)]
    if not part.null_count:
        return values
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
    there = bits[part.offset : part.offset + len(part)].astype(bool)
    return np.where(there, values, np.array(np.nan, np.result_type(values.dtype, np.float16)))


def _input(spec: TensorSpec, column: Any) -> Array:
    """One input of a model that is no table: [rows, ...] from a column of values or of lists."""
    column = _decoded(column)
    shape = [len(column)]
    values = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    while _is_list(values.type):
        if values.null_count:
            raise ShapeMismatch(f"column '{spec.name}' has a row without a list")
        lengths = set(values.value_lengths().to_pylist()) or {max(0, spec.shape[len(shape)])}
        if len(lengths) > 1:
            raise ShapeMismatch(f"column '{spec.name}': lists of {min(lengths)} to {max(lengths)} elements")
        shape.append(lengths.pop())
        values = values.flatten()
    inner = spec.shape[1:]
    per_row = math.prod(shape[1:])
    if len(shape) <= 2 and len(shape) != len(spec.shape):  # a list for an image, a value for [rows, 1]
        with suppress(ValueError):
            shape = [shape[0], *np.empty(per_row, np.int8).reshape(inner).shape]
    if len(shape) != len(spec.shape) or any(
        want not in (-1, got) for got, want in zip(shape[1:], inner, strict=True)
    ):
        raise ShapeMismatch(f"column '{spec.name}': a row of shape {shape[1:]}, want {list(inner)}")
    one = Signature((TensorSpec(spec.name, spec.datatype, (-1, 1)),), (), 0, (spec.name,))
    flat = _plain(spec.name, values)
    return table.conform(one, {spec.name: flat})[spec.name].reshape(shape)


def _decoded(column: Any) -> Any:
    """Without a dictionary (what pandas writes for categories)."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _column(spec: TensorSpec, values: Array) -> Any:
    inner = () if spec.shape[1:] == (1,) else values.shape[1:]
    flat = values.reshape(-1)
    if spec.datatype == "BYTES":
        column = _text_column(flat)
    else:
        column = _array(flat.astype(DATATYPES[spec.datatype], copy=False))
    for axis in range(len(inner), 0, -1):
        length, wanted = inner[axis - 1], spec.shape[axis]
        if wanted >= 0:
            column = pa.FixedSizeListArray.from_arrays(column, length)
        else:
            rows = len(values)
            for outer in inner[: axis - 1]:
                rows *= outer
            column = pa.ListArray.from_arrays(_array(np.arange(rows + 1, dtype=np.int32) * length), column)
    return column


def _array(values: Array) -> Any:
    """Numbers or truth values [rows] as an Arrow array; without `pa.array`, which imports pandas."""
    if values.dtype == bool:
        return pa.array(values)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, data])


def _text_column(flat: Array) -> Any:
    items = [None if item == table.MISSING else item for item in flat.tolist()]
    data = [item.encode(errors="replace") if isinstance(item, str) else item for item in items]
    column = pa.array(data, pa.binary())
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return column


def _names(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
