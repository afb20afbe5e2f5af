"""Decides how many rows a model is tried on, where it declares how many it takes at once."""

from typing import Any

from interlock.core.errors import CheckFailed
from interlock.core.model import Array, Capabilities, Tensors
from interlock.runtime import examples

LIMIT_CALL_BYTES = 64 * 1024**2
"""The call that tries a declared `max_batch_rows` has inputs of so many bytes at most."""


def limit_of(declared: dict[str, Any]) -> int:
    """Rows that a call may have: as declared, or the default.

    Raises: CheckFailed if that is no number of rows.
    >>> limit_of({"max_batch_rows": 8}), limit_of({})
    (8, 256)
    """
    limit = declared.get("max_batch_rows", Capabilities().max_batch_rows)
    if type(limit) is not int or limit < 1:
        raise CheckFailed(f"the model declares max_batch_rows = {limit!r}: want a whole number, 1 or more")
    return limit


def first_rows(reference: Tensors, rows: int) -> Tensors:
    """The first rows of reference data; all of it if its arrays do not agree on how many there are."""
    if len({array.shape[:1] for array in reference.values()} - {()}) != 1:
        return reference
    return {name: array[:rows] if array.ndim else array for name, array in reference.items()}


def rows_within(data: Tensors, most_bytes: int) -> int:
    """How many rows like those of `data` have `most_bytes`, 1 at least.

    A row counts as 8 bytes at least, and BYTES count with their lengths.
    """
    total_bytes = sum(_bytes_of(array) for array in data.values())
    return max(1, int(most_bytes / max(8.0, total_bytes / examples.rows_of(data))))


def _bytes_of(array: Array) -> int:
    return array.nbytes + (sum(map(len, array.ravel().tolist())) if array.dtype.kind == "O" else 0)
