"""Decides what the reference data of a registration are: read from a file or given as arrays, and widened."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError, MissingExtra
from interlock.core.model import Array, Tensors
from interlock.runtime.examples import ONLY


class Reference(msgspec.Struct, frozen=True):
    """Rows to try a model on. `inputs` by input name, or one matrix under
    `examples.ONLY` for a model with one input."""

    inputs: Tensors
    rows: int
    target: Array | None = None


def read(path: Path, target: str | None) -> Reference:
    """Read .csv, .parquet (columns of numbers become one matrix) or .npz (one array an input).

    Raises: ConfigError for a file that cannot be read or has no such target; MissingExtra for parquet without
    pyarrow.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
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
    except (OSError, ValueError) as error:
        raise ConfigError(f"reference data {path}: {error}") from error
    columns = {str(name): frame[name].to_numpy() for name in frame.columns}
    if target is not None and target not in columns:
        raise ConfigError(f"reference data {path.name}: no column {target!r}, want one of {sorted(columns)}")
    answers = None if target is None else columns.pop(target)
    wordy = [name for name, values in columns.items() if values.dtype.kind not in "biuf"]
    if wordy:
        raise ConfigError(
            f"reference data {path.name}: the columns {wordy} are not numbers: leave them out, name one "
            "as the target, or give an .npz with one array an input"
        )
    return of(np.column_stack([values.astype(np.float64) for values in columns.values()]), answers)


def of(data: Any, target: Any = None) -> Reference:
    """From what Python code passes: a matrix or DataFrame [rows, columns], or a dict of input name to array.

    Raises: ConfigError.
    """
    if isinstance(data, dict):
        arrays = {str(name): np.asarray(values) for name, values in data.items()}
    else:
        matrix = np.asarray(data)
        if matrix.ndim == 1:
            matrix = matrix.reshape(-1, 1)
        arrays = {ONLY: matrix}
    rows = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if not rows or 0 in rows.values() or len(set(rows.values())) != 1:
        raise ConfigError(
            f"reference data with {rows} rows: want the same number, at least 1, for every input"
        )
    return Reference(arrays, next(iter(rows.values())), None if target is None else np.asarray(target))


def widened(matrix: Array, least_rows: int, seed: int = 0) -> Array:
    """The rows (float32), their extremes, and seeded draws within and beyond each column's range.

    Extremes are each column's least and greatest value, and values one range's width outside of both, the
    other columns at a row's own values. At least `least_rows` rows come back.
    """
    given = np.asarray(matrix, np.float64)
    odd = given[~np.isfinite(given).all(axis=1)]  # rows with gaps are tried too, but say nothing of ranges
    given = given[np.isfinite(given).all(axis=1)]
    width = matrix.shape[1]
    if not len(given):
        given = np.zeros((1, width))
    low, high = given.min(axis=0), given.max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    # A range that float32 cannot tell from a point is one: its values beyond would be rounded back onto it.
    visible = np.maximum(4 * np.spacing(size.astype(np.float32)), 1e-30)
    span = np.where(high - low > visible, high - low, np.maximum(1.0, size))
    random = np.random.default_rng(seed)
    extremes = []
    for column in range(width):
        for value in (low[column], high[column], low[column] - span[column], high[column] + span[column]):
            row = given[random.integers(len(given))].copy()
            row[column] = value
            extremes.append(row)
    parts = [given, odd, low[None], high[None], (low - span)[None], (high + span)[None], np.array(extremes)]
    lacking = max(0, least_rows - sum(len(part) for part in parts))
    within = lacking // 2
    parts.append(random.uniform(low, high, (within, width)))
    parts.append(random.uniform(low - span, high + span, (lacking - within, width)))
    return np.concatenate(parts).astype(np.float32)


def _from_arrays(arrays: Tensors, target: str | None, name: str) -> Reference:
    if target is not None and target not in arrays:
        raise ConfigError(f"reference data {name}: no array {target!r}, want one of {sorted(arrays)}")
    answers = None if target is None else arrays.pop(target)
    return of(arrays, answers)
