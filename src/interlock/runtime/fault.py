"""Decides what a fault does to a model in memory: which rows it concerns, and what becomes of them.

For self-tests alone (`core/fault.py`). A loaded model is wrapped after its warm-up, in the worker or in the
executor, so everything above it meets the fault as it would meet a real one.
"""

import hashlib
import time

import numpy as np

from interlock.core.fault import Fault
from interlock.core.model import Array, Tensors, Version
from interlock.runtime.protocol import Loaded

LEAST_SLOW_S = 1e-3
"""A batch that takes less counts as one of so long when it is made slow: gates do not look at less than .1 ms
more, so three times a few microseconds is nothing that they are to find."""
MOST_SLOW_S = 1.0
"""The most that one batch is made to wait: a self-test must not run into time-outs."""


class FaultInjected(Exception):
    """What a model with the fault `fail` raises."""


def marked(inputs: Tensors, fault: Fault, has_rows: bool = True) -> Array:
    """Which rows a fault concerns, [rows]; not `has_rows`: [1], the whole request is one.

    `inputs` are as a model gets them: the dtypes of `core.model.DATATYPES`.
    """
    parts = [_contents(inputs[name], has_rows) for name in sorted(inputs)]
    key = fault.seed.to_bytes(8, "little")
    limit = int(fault.level * 2**64)
    found = [
        int.from_bytes(hashlib.blake2b(b"\0".join(row), digest_size=8, key=key).digest(), "little") < limit
        for row in zip(*parts, strict=True)
    ]
    return np.array(found, np.bool_)


class Faulty:
    """A Loaded that is worse than the one that it holds. As thread-safe as that one."""

    def __init__(self, loaded: Loaded, version: Version, fault: Fault) -> None:
        self._loaded = loaded
        self._fault = fault
        self._has_rows = version.signature.batch_axis == 0

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """As `Loaded.predict`. `slow` concerns batches, the others rows; a batch fails with one of its rows,
        and whoever tries its halves finds which.

        Raises: FaultInjected; what the model raises.
        """
        fault = self._fault
        if fault.kind == "slow":
            started_s = time.monotonic()
            found = self._loaded.predict(inputs, outputs)
            took_s = max(time.monotonic() - started_s, LEAST_SLOW_S)
            time.sleep(min((fault.level - 1.0) * took_s, MOST_SLOW_S))
            return found
        # Before the model runs: inputs may lie in memory that is written to afterwards.
        rows = marked(inputs, fault, self._has_rows)
        if fault.kind == "fail" and rows.any():
            raise FaultInjected("a fault of the self-test")
        found = self._loaded.predict(inputs, outputs)
        if not rows.any():
            return found
        change = with_nan if fault.kind == "nan" else flipped
        return {name: self._changed(array, rows, change(array)) for name, array in found.items()}

    def close(self) -> None:
        self._loaded.close()

    def _changed(self, array: Array, rows: Array, other: Array) -> Array:
        if not self._has_rows:
            return other
        return np.where(rows.reshape(-1, *(1,) * (array.ndim - 1)), other, array).astype(
            array.dtype, copy=False
        )


def with_nan(array: Array) -> Array:
    """All NaN, where the dtype has such a thing."""
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array


def flipped(array: Array) -> Array:
    """An answer that says something else, of the same dtype and shape: another label, truth value or text; of
    fractions the sign is turned round, and all of them move, so that the least one is the greatest.

    >>> flipped(np.array([0, 1, 2])).tolist(), flipped(np.array([True])).tolist()
    ([1, 0, 3], [False])
    >>> flipped(np.array([[0.25, 0.75]])).tolist()
    [[-1.25, -1.75]]
    """
    kind = array.dtype.kind
    if kind == "f":
        return np.asarray(np.where(array < 0, 1 - array, -1 - array), array.dtype)
    if kind == "b":
        return np.asarray(~array)
    if kind in "iu":
        return np.asarray(array ^ array.dtype.type(1))
    made = np.empty(array.size, np.object_)
    made[:] = [value + (b"~" if isinstance(value, bytes) else "~") for value in array.ravel().tolist()]
    return made.reshape(array.shape)


def _contents(array: Array, has_rows: bool) -> list[bytes]:
    """Each row as bytes; texts with their lengths, so that no two rows look the same."""
    rows = array if has_rows else array[None]
    if array.dtype.kind not in "OSU":
        return [row.tobytes() for row in np.ascontiguousarray(rows)]
    found = []
    for row in rows:
        texts = [text.encode() if isinstance(text, str) else text for text in np.ravel(row).tolist()]
        found.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
    return found
