"""Decides which rows a model is tried on: the given ones or made-up ones, tiled, cut, compared."""

import numpy as np

from interlock.core.errors import CheckFailed, InvalidRequest
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec
from interlock.core.table import conform, texts

ONLY = "*"
"""The name of reference rows that go to the one input, whatever it is called."""

FREE_LENGTH = 4
"""What stands for a free dimension other than rows."""


def generate(signature: Signature, rows: int, seed: int = 0) -> Tensors:
    """Seeded data that fit a signature: standard normals, small integers, short words."""
    random = np.random.default_rng(seed)
    return {spec.name: _fill(spec, _shape(spec, signature, rows), random) for spec in signature.inputs}


def fit(signature: Signature, data: Tensors, is_table: bool = False) -> Tensors:
    """The inputs of the signature in its dtypes; what it does not name is left out. `is_table`: the data are
    columns [rows], which, if all are numbers, fit one input [-1, columns], too.

    Raises: CheckFailed if the data do not fit.
    """
    names = [spec.name for spec in signature.inputs]
    if signature.columns and set(signature.columns) <= set(data):
        try:
            return conform(signature, {name: data[name] for name in signature.columns})
        except InvalidRequest as error:
            raise CheckFailed(f"the reference data do not fit the model: {error.message}") from error
    if is_table and len(names) == 1 and names[0] not in data and (joined := stacked(data)) is not None:
        data = {ONLY: joined}
    if set(data) == {ONLY} and len(names) == 1:
        data = {names[0]: data[ONLY]}
    missing = [name for name in names if name not in data]
    if missing:
        raise CheckFailed(
            f"the model has the inputs {names}, the reference data {sorted(data)}: give them as an .npz or a "
            "dict with one array an input"
        )
    try:
        return {spec.name: _cast(data[spec.name], spec) for spec in signature.inputs}
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"the reference data do not fit the model's inputs: {error}") from error


def stacked(data: Tensors) -> Array | None:
    """Columns [rows] as one matrix of floats [rows, columns]; None if they are not all numbers.

    Raises: CheckFailed for a whole number that a float does not hold.
    >>> stacked({"a": np.array([1, 2]), "b": np.array([0.5, 1.5])}).tolist()
    [[1.0, 0.5], [2.0, 1.5]]
    """
    if ONLY in data or any(values.ndim != 1 or values.dtype.kind not in "biuf" for values in data.values()):
        return None
    for name, values in data.items():
        if (row := beyond_floats(values)) is not None:
            raise CheckFailed(
                f"column {name!r} has {values[row]} in row {row}, which no 64-bit float holds: declare a"
                " `signature` with an input [-1, 1] a column, or leave that column out"
            )
    return np.column_stack([values.astype(np.float64) for values in data.values()])


def beyond_floats(values: Array) -> int | None:
    """The first row whose whole number a 64-bit float does not hold.

    >>> beyond_floats(np.array([2**53, 2**53 + 1]))
    1
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return None
    with np.errstate(invalid="ignore"):
        changed = np.flatnonzero(values.astype(np.float64).astype(values.dtype) != values)
    return int(changed[0]) if len(changed) else None


def texts_as_bytes(data: Tensors) -> Tensors:
    """The data with every string as `bytes`, UTF-8, as requests bring them whatever way they come."""
    return {name: texts(array) if array.dtype.kind in "SUO" else array for name, array in data.items()}


def take(data: Tensors, start: int, count: int) -> Tensors:
    """`count` rows from `start` on, beginning anew at the end."""
    rows = rows_of(data)
    index = (np.arange(count) + start) % rows
    return {name: array[index] for name, array in data.items()}


def rows_of(data: Tensors) -> int:
    """The length of the first axis."""
    return len(next(iter(data.values())))


def join(parts: list[Tensors]) -> Tensors:
    """Batches one after the other along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def joined_where_equal(parts: list[Tensors]) -> list[Tensors]:
    """Neighbours whose rows have equal shapes, joined; mostly one group of all.

    >>> parts = [{"y": np.zeros(shape)} for shape in ((1, 2), (3, 2), (1, 5))]
    >>> [len(group["y"]) for group in joined_where_equal(parts)]
    [4, 1]
    """
    runs: list[list[Tensors]] = []
    for part in parts:
        if runs and _row_shapes(runs[-1][0]) == _row_shapes(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [run[0] if len(run) == 1 else join(run) for run in runs]


def _row_shapes(part: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in part.items()}


def difference(left: Tensors, right: Tensors) -> float:
    """The largest |a - b| / max(1, |b|) over all outputs; infinite where labels, shapes or names differ."""
    if left.keys() != right.keys():
        return float("inf")
    return max((_difference(array, right[name]) for name, array in left.items()), default=0.0)


def _difference(left: Array, right: Array) -> float:
    if left.shape != right.shape:
        return float("inf")
    if left.dtype.kind != "f":
        return 0.0 if bool(np.all(left == right)) else float("inf")
    a, b = left.astype(np.float64), right.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
    gap = np.where(np.isnan(gap), np.inf, gap)
    return float(gap.max(initial=0.0))


def _cast(array: Array, spec: TensorSpec) -> Array:
    array = np.asarray(array)
    array = texts(array) if spec.datatype == "BYTES" else array.astype(DATATYPES[spec.datatype])
    if array.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] == 1:
        array = array[:, None]
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for got, want in zip(array.shape[1:], spec.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"input {spec.name!r}: got {list(array.shape)}, the model wants {list(spec.shape)}")
    return array


def _shape(spec: TensorSpec, signature: Signature, rows: int) -> tuple[int, ...]:
    lead = (rows,) if signature.batch_axis == 0 else spec.shape[:1]
    return tuple(FREE_LENGTH if d == -1 else d for d in (*lead, *spec.shape[1:]))


def _fill(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    dtype = DATATYPES[spec.datatype]
    if spec.datatype == "BYTES":
        words = np.array([b"a", b"b", b"spam", "räksmörgås".encode(), b""], object)
        return np.asarray(words[random.integers(0, len(words), shape)], object).reshape(shape)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def misshapen(array: Array, spec: TensorSpec) -> Array:
    """The array in a shape that does not fit its spec."""
    if any(length != -1 for length in spec.shape[1:]):
        axis = next(i for i, length in enumerate(spec.shape) if i and length != -1)
        return array.repeat(2, axis=axis) if array.shape[axis] else array
    return array[..., None]
