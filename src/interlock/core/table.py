"""Decides how the columns of a table become a model's inputs: one tensor, or one input a column.

A tabular model's `Signature.columns` names its columns. It has one input [-1, columns] of numbers of one
datatype, or one input [-1, 1] for each column. Whoever asks may send either form to either kind of model.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from interlock.core.errors import DatatypeMismatch, InputMismatch, ShapeMismatch
from interlock.core.model import DATATYPES, Array, Signature, Tensors

MISSING = b"\xff"
"""A missing text in a BYTES tensor: the byte that UTF-8 never holds. A missing number is NaN."""


def is_matrix(signature: Signature) -> bool:
    """Whether a tabular model takes all of its columns as one tensor."""
    return bool(signature.columns) and tuple(spec.name for spec in signature.inputs) != signature.columns


def conform(signature: Signature, sent: Mapping[str, Array]) -> Tensors:
    """The inputs of a tabular model, from columns by name ([rows] or [rows, 1]) or from one table
    ([rows, columns], under any name).

    Numbers take the datatype of the signature where none is lost but the digits that a float has not; texts
    are `bytes` or `str`, and None, NaN or MISSING where there is none. Columns that the model does not have
    are refused.
    Raises: InputMismatch, ShapeMismatch, DatatypeMismatch, each with the column's name.
    >>> from interlock.core.model import TensorSpec
    >>> x = TensorSpec("x", "FP32", (-1, 2))
    >>> conform(Signature((x,), (), 0, ("a", "b")), {"b": np.array([2]), "a": np.array([1])})["x"].tolist()
    [[1.0, 2.0]]
    """
    columns = signature.columns
    given = _columns(columns, sent)
    rows = {name: len(values) for name, values in given.items()}
    if len(set(rows.values())) > 1:
        raise ShapeMismatch(f"the columns have different numbers of rows: {_few(rows)}; want the same")
    if is_matrix(signature):
        spec = signature.inputs[0]
        made = np.empty((next(iter(rows.values())), len(columns)), DATATYPES[spec.datatype])
        if not _fill(made, given.values()):
            for index, name in enumerate(columns):
                made[:, index] = cast(name, given[name], spec.datatype)
        return {spec.name: made}
    return {
        spec.name: cast(spec.name, given[spec.name], spec.datatype).reshape(-1, *spec.shape[1:])
        for spec in signature.inputs
    }


def cast(name: str, values: Array, datatype: str, kind: str = "column") -> Array:
    """Numbers or texts [rows] as a datatype of the protocol, by the rules of `conform`. `name` and `kind` are
    for messages: a "column" has rows, the values of anything else have positions.

    Raises: DatatypeMismatch, with the first value that does not fit.
    >>> cast("age", np.array([41.0, None], object), "FP32").tolist()
    [41.0, nan]
    """
    wanted = DATATYPES[datatype]
    if datatype == "BYTES":
        if values.dtype.kind in "biuf":
            raise DatatypeMismatch(f"{kind} '{name}': got numbers ({values.dtype}); the model wants texts")
        return texts(values)
    if values.dtype == wanted:
        return values
    numbers = values if values.dtype.kind in "biuf" else _numbers(name, values, datatype, kind)
    with np.errstate(invalid="ignore", over="ignore"):
        made = numbers.astype(wanted)
    if wanted.kind == "f":
        if np.isfinite(made).all():  # nearly always, and one pass in place of four
            return made
        # Casts only down, and from integers, can overflow; what was infinite stays so.
        wrong = np.flatnonzero(np.isinf(made) & np.isfinite(numbers))
    elif wanted.kind in "iu" and numbers.dtype.kind == "f":
        # 2**63 is a float and no INT64; its cast may come back as an equal number.
        info = np.iinfo(wanted)
        wrong = np.flatnonzero(
            (made != numbers) | (numbers < float(info.min)) | (numbers >= float(info.max) + 1)
        )
    else:
        wrong = np.flatnonzero(made != numbers)
    if len(wrong):
        at = int(wrong[0])
        raise DatatypeMismatch(
            f"{kind} '{name}': value {numbers[at]!s} {_place(kind, at)} does not fit {datatype}"
        )
    return made


def texts(values: Array) -> Array:
    """A column of texts as a BYTES tensor: UTF-8, MISSING for None and NaN.

    >>> texts(np.array(["a", None, float("nan")], object)).tolist()
    [b'a', b'\\xff', b'\\xff']
    """
    made = np.empty(values.size, np.object_)
    made[:] = [_text(value) for value in values.ravel().tolist()]
    return made.reshape(values.shape)


def column_datatype(values: Array) -> str | None:
    """The datatype of a column of a table, None for one that no tensor can hold (dates, lists).

    >>> column_datatype(np.array(["a", None], object)), column_datatype(np.array([1.5]))
    ('BYTES', 'FP64')
    """
    if values.dtype.kind in "SU":
        return "BYTES"
    if values.dtype.kind == "O":
        kinds = {type(value) for value in values.ravel().tolist() if not is_missing(value)}
        if kinds <= {str, bytes}:
            return "BYTES"
        if kinds <= {bool, np.bool_}:
            return "BOOL" if not any(is_missing(value) for value in values.ravel().tolist()) else "FP64"
        return "FP64" if all(issubclass(kind, int | float | np.number) for kind in kinds) else None
    for name, dtype in DATATYPES.items():
        if dtype == values.dtype and name != "BF16":
            return name
    return None


def is_missing(value: object) -> bool:
    """Whether an element of a column says that there is none."""
    # pandas.NA is no float, and comparing it says neither yes nor no; its type is known by its name, without
    # pandas.
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, bytes) and value == MISSING)
        or (isinstance(value, float) and value != value)
    )


def _fill(made: Array, columns: Collection[Array]) -> bool:
    """Numbers into a matrix of floats, at once; whether each fits, for only `cast` can say which does not."""
    if made.dtype.kind != "f" or not all(values.dtype.kind in "biuf" for values in columns):
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        for index, values in enumerate(columns):
            made[:, index] = values
    return not np.isinf(made).any()


def _columns(columns: tuple[str, ...], sent: Mapping[str, Array]) -> dict[str, Array]:
    """Each column [rows], whichever way they came."""
    if len(sent) == 1 and set(sent) != set(columns):
        name, table = next(iter(sent.items()))
        if table.ndim == 2:
            if table.shape[1] != len(columns):
                raise ShapeMismatch(
                    f"input '{name}': got shape {list(table.shape)}; the model has {len(columns)} columns:"
                    f" {_names(columns)}"
                )
            return {column: table[:, index] for index, column in enumerate(columns)}
    if sent.keys() != set(columns):
        known = set(columns)
        unknown = [name for name in sent if name not in known]
        missing = [name for name in columns if name not in sent]
        parts = [f"column {_names(missing)} is missing"] if missing else []
        parts += [f"column {_names(unknown)} is unknown"] if unknown else []
        raise InputMismatch(
            f"{'; '.join(parts)}; want the columns {_names(columns)}, or one table [rows, {len(columns)}]"
        )
    made = {}
    for name in columns:
        values = sent[name]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise ShapeMismatch(
                f"column '{name}': got shape {list(sent[name].shape)}; want [rows] or [rows, 1]"
            )
        made[name] = values
    return made


_WORDS = {b"true": 1.0, b"false": 0.0, b"": float("nan"), MISSING: float("nan")}


def _numbers(name: str, values: Array, datatype: str, kind: str) -> Array:
    """Texts and objects as numbers: what a CSV file, or a table of mixed columns in one tensor, brings."""
    items = values.tolist()
    if DATATYPES[datatype].kind in "iu" and set(map(type, items)) <= {str, bytes, int}:
        try:
            # As integers: a float holds 53 bits.
            return np.array(list(map(int, items)), DATATYPES[datatype])
        except (ValueError, OverflowError):
            pass  # below it is found out which one is none
    made = np.empty(len(values), np.float64)
    for row, value in enumerate(items):
        if not isinstance(value, str | bytes):
            made[row] = _number(name, row, value, datatype, kind)
            continue
        text = value.encode(errors="replace") if isinstance(value, str) else value
        found = _WORDS.get(text.strip().lower())
        made[row] = _number(name, row, text, datatype, kind) if found is None else found
    return made


def _number(name: str, row: int, value: Any, datatype: str, kind: str) -> float:
    if is_missing(value):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DatatypeMismatch(
            f"{kind} '{name}': {_shown(value)} {_place(kind, row)} is no {datatype}"
        ) from None


def _place(kind: str, at: int) -> str:
    return f"in row {at}" if kind == "column" else f"at position {at}"


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    try:
        return f"{str(value)[:60]!r}"
    except Exception:  # a whole number of 4301 digits, or an object's own __str__
        return f"a value of type {type(value).__name__}"


def _text(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        return value.encode(errors="replace")
    if is_missing(value):
        return MISSING
    try:
        return str(value).encode(errors="replace")
    except Exception:  # as in _shown
        raise DatatypeMismatch(f"{_shown(value)} is no text") from None


def _names(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def _few(rows: dict[str, int]) -> str:
    return ", ".join(f"'{name}' {count}" for name, count in list(rows.items())[:8])
