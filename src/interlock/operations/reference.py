"""Decides what the reference data of a registration are: a file, arrays, or a DataFrame."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError, MissingExtra, said
from interlock.core.model import DATATYPES, Array, Tensors, label_fault
from interlock.core.table import column_datatype, is_missing, texts
from interlock.operations.files import check_file
from interlock.runtime.examples import ONLY, stacked
from interlock.runtime.table import Table

MOST_BYTES = 2 * 1024**3
"""Of one file of reference data: it is read into memory, and 10,000 of its rows are used."""


class Reference(msgspec.Struct, frozen=True):
    """Rows to try a model on. `inputs`: by input name; or one matrix under `examples.ONLY`, for a model with
    one input; or, with a `table`, its columns [rows], texts as bytes."""

    inputs: Tensors
    rows: int
    target: Array | None = None
    table: Table | None = None


def read(path: Path, target: str | None) -> Reference:
    """Read .csv, .parquet (a table) or .npz (one array an input).

    Raises: ConfigError for a file that cannot be read or has no such target; MissingExtra for parquet without
    pyarrow.
    """
    check_file(path, ConfigError, MOST_BYTES)
    try:
        if path.suffix == ".npz":
            # Not by its path: NumPy leaves open what it opened itself and then cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return _from_arrays({name: stored[name] for name in stored.files}, target, path.name)
        import pandas

        if path.suffix == ".parquet":
            try:
                frame = pandas.read_parquet(path)
            except ImportError:
                raise MissingExtra("pyarrow", "parquet") from None
        elif path.suffix == ".csv":
            frame = pandas.read_csv(path)
        else:
            raise ConfigError(f"reference data {path.name}: want .parquet, .csv or .npz")
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"reference data {path} cannot be read: {said(error)}") from error
    if target is not None and target not in frame.columns:
        names = sorted(map(str, frame.columns))
        raise ConfigError(f"reference data {path.name}: no column {target!r}, want one of {names}")
    answers = None if target is None else frame.pop(target)
    return of(frame, answers)


def of(data: Any, target: Any = None) -> Reference:
    """From what Python code passes: a matrix [rows, columns], a DataFrame, or a dict of input name to array.

    Raises: ConfigError.
    """
    answers = None if target is None else _target(target)
    if type(data).__name__ == "DataFrame" and hasattr(data, "columns"):
        table, arrays = _of_frame(data)
    else:
        table = None
        if isinstance(data, dict):
            arrays = {name: _array(f"input {name!r}", values) for name, values in data.items()}
        else:
            matrix = _array("the matrix", data)
            if matrix.ndim == 1:
                matrix = matrix.reshape(-1, 1)
            arrays = {ONLY: matrix}
    for name in arrays:
        if fault := label_fault(name):
            kind = "input" if table is None else "column"
            raise ConfigError(f"reference data: the name of {kind} {str(name)[:60]!a} {fault}: rename it")
    if not arrays or any(values.ndim > 1 and not values.shape[1] for values in arrays.values()):
        raise ConfigError("reference data without a column: want at least 1 beside the target")
    rows = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if answers is not None:
        rows["the target"] = len(answers) if answers.ndim else 0
    if 0 in rows.values() or len(set(rows.values())) != 1:
        shown = dict(list(rows.items())[:8])
        raise ConfigError(
            f"reference data with {shown} rows: want the same number, at least 1, for every input"
        )
    return Reference(arrays, next(iter(rows.values())), answers, table)


def arrays(reference: Reference) -> Tensors:
    """The rows as arrays: a table of numbers is one matrix."""
    joined = None if reference.table is None else stacked(reference.inputs)
    return reference.inputs if joined is None else {ONLY: joined}


def sample(reference: Reference, most_rows: int) -> Tensors:
    """`most_rows` of the rows, spread evenly, and those of each number column's extremes: twice as many at
    most."""
    if reference.rows <= most_rows:
        return reference.inputs
    chosen = set(np.linspace(0, reference.rows - 1, most_rows).astype(int).tolist())
    for values in reference.inputs.values():
        if values.ndim == 1 and values.dtype.kind in "iuf" and len(chosen) < 2 * most_rows:
            gapless = np.nan_to_num(values.astype(np.float64))
            chosen |= {int(gapless.argmin()), int(gapless.argmax())}
    index = np.array(sorted(chosen))
    return {name: values[index] for name, values in reference.inputs.items()}


def _of_frame(frame: Any) -> tuple[Table, Tensors]:
    names = [str(name) for name in frame.columns]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)[:5]
    if twice:
        raise ConfigError(
            f"reference data: the columns {twice} are there more than once: rename or drop them"
        )
    columns, categories, none, arrays = [], {}, [], {}
    for position, name in enumerate(names):
        series = frame.iloc[:, position]
        values, known = _values(name, series)
        if known is not None:
            categories[name] = known
        datatype = column_datatype(values)
        if datatype is None:
            raise ConfigError(
                f"reference data: column {name!r} is {series.dtype}, which no input of a model can carry:"
                " want numbers, booleans or texts; derive such columns, or leave it out"
            )
        if datatype == "BYTES":
            if any(value is None for value in values.tolist()):
                none.append(name)
            values = texts(values)
        elif values.dtype.kind == "O":
            values = values.astype(DATATYPES[datatype])
        columns.append((name, datatype))
        arrays[name] = values
    return Table(tuple(columns), categories, tuple(none)), arrays


def _values(name: str, series: Any) -> tuple[Array, tuple[Any, ...] | None]:
    """A column as NumPy has it, and its categories if pandas calls it categorical."""
    if hasattr(series, "cat") and type(series.dtype).__name__ == "CategoricalDtype":
        known = tuple(np.asarray(series.cat.categories).tolist())
        if not all(isinstance(value, str | int | float | bool) for value in known):
            raise ConfigError(f"reference data: the categories of column {name!r} are not texts or numbers")
        if not all(isinstance(value, str) for value in known):
            return np.asarray(
                series.astype(np.asarray(series.cat.categories).dtype if not series.hasnans else float)
            ), known
        return np.asarray(series.astype(object)), known
    if hasattr(series.array, "_mask") and series.dtype.kind in "biuf":  # pandas' own numbers that may be NA
        return series.to_numpy(float, na_value=np.nan) if series.hasnans else series.to_numpy(
            series.dtype.numpy_dtype
        ), None
    return np.asarray(series), None


def _array(what: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise ConfigError(f"reference data: {what} is no array: {said(error, 200)}") from None
    if array.dtype.kind not in "biufSUO":
        raise ConfigError(f"reference data: {what} is {array.dtype}: want numbers, booleans or texts")
    return array


def _target(values: Any) -> Array:
    """Raises: ConfigError for answers of which some are missing: nothing can be measured by them."""
    answers = _array("the target", values)
    missing = np.isnan(answers) if answers.dtype.kind == "f" else np.zeros(answers.shape, np.bool_)
    if answers.dtype.kind == "O":
        missing = np.array([is_missing(value) for value in answers.ravel().tolist()], np.bool_)
    if missing.any():
        raise ConfigError(
            f"reference data: the target has no value in {int(missing.sum())} of {missing.size} rows: leave"
            " these rows out"
        )
    return answers


def _from_arrays(arrays: Tensors, target: str | None, name: str) -> Reference:
    if target is not None and target not in arrays:
        raise ConfigError(f"reference data {name}: no array {target!r}, want one of {sorted(arrays)}")
    answers = None if target is None else arrays.pop(target)
    return of(arrays, answers)
