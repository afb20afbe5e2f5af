"""Decides which of two backends of one model runs a batch, by its rows; which is faster was measured before.

`options["onnx"]` is the model once more, as ONNX, and `options["onnx_rows"]` the least and the most rows that
it is for, the latter null where there is no most.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from interlock.core.errors import LoadFailed
from interlock.core.model import Signature, Tensors, Version
from interlock.runtime.onnx import runtime as onnx
from interlock.runtime.protocol import Loaded

MEASURED_ROWS = (1, 8, 32, 64, 128, 256)
"""The sizes at which two backends are compared."""
MARGIN = 1.1
"""How much faster ONNX must be to be worth a second backend: medians of two runs differ by less than this."""

Rows = tuple[int, int | None]
"""The least and the most rows of a batch; None: however many."""

ALL: Rows = (1, None)


class ByRows:
    """Two models in memory that answer the same: ONNX for batches of `rows`, the native for others."""

    def __init__(self, native: Loaded, converted: Loaded, rows: Rows, leading: str) -> None:
        self._native = native
        self._converted = converted
        self._least, most = rows
        self._most = most if most is not None else 1 << 62
        self._leading = leading

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: what the backend that is chosen does."""
        if self._least <= len(inputs[self._leading]) <= self._most:
            return self._converted.predict(inputs, outputs)
        return self._native.predict(inputs, outputs)

    def close(self) -> None:
        self._converted.close()
        self._native.close()


def with_onnx(native: Loaded, folder: Path, version: Version, signature: Signature) -> Loaded:
    """The model itself, or both backends if the version's options name the second. Raises: LoadFailed."""
    entry = version.options.get("onnx")
    if entry is None:
        return native
    try:
        path = msgspec.convert(entry, str)
        rows = msgspec.convert(version.options.get("onnx_rows"), Rows)
    except msgspec.ValidationError as error:
        raise LoadFailed(
            f"{version.key}: of its options, onnx is {entry!r} and onnx_rows"
            f" {version.options.get('onnx_rows')!r}; want a file, and its least and most rows ({error})"
        ) from None
    converted = onnx.load(folder, msgspec.structs.replace(version, entry=path, signature=signature))
    return ByRows(native, converted, rows, signature.inputs[0].name)


def onnx_rows(native_s: Mapping[int, float], onnx_s: Mapping[int, float]) -> Rows | None:
    """The batches that ONNX is worth it for: ALL, some, or None.

    Both map rows to seconds a call, at the same sizes. ONNX is worth it at a size where it takes less than
    the native time by MARGIN. The batches are those from the smallest such size on, up to the last before one
    where it is not; without end if there is none.
    >>> onnx_rows({1: 20e-6, 32: 40e-6, 256: 100e-6}, {1: 8e-6, 32: 30e-6, 256: 200e-6})
    (1, 32)
    >>> onnx_rows({1: 9e-6, 32: 90e-6, 256: 900e-6}, {1: 12e-6, 32: 60e-6, 256: 400e-6})
    (32, None)
    """
    found: list[int] = []
    for rows in sorted(native_s):
        if onnx_s[rows] * MARGIN <= native_s[rows]:
            found.append(rows)
        elif found:
            return found[0], found[-1]
    return (found[0], None) if found else None
