"""Decides which of two backends of one model runs a batch, by its rows; which is faster was measured before.

`options["onnx"]` is the model once more, as ONNX, and `options["onnx_rows"]` the most rows that it is for.
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


class ByRows:
    """Two models in memory that answer the same: ONNX up to `onnx_rows` rows, the framework's own above."""

    def __init__(self, native: Loaded, converted: Loaded, onnx_rows: int, leading: str) -> None:
        self._native = native
        self._converted = converted
        self._onnx_rows = onnx_rows
        self._leading = leading

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: what the backend that is chosen does."""
        if len(inputs[self._leading]) <= self._onnx_rows:
            return self._converted.predict(inputs, outputs)
        return self._native.predict(inputs, outputs)

    def close(self) -> None:
        self._converted.close()
        self._native.close()


def with_onnx(native: Loaded, folder: Path, version: Version, signature: Signature) -> Loaded:
    """The model itself, or both backends if the version's options name the second. Raises: LoadFailed."""
    entry, rows = version.options.get("onnx"), version.options.get("onnx_rows", 0)
    if entry is None:
        return native
    if not isinstance(entry, str) or not isinstance(rows, int) or rows < 1:
        raise LoadFailed(
            f"{version.key}: its options say onnx = {entry!r} up to onnx_rows = {rows!r}; want a file and a"
            " number of rows"
        )
    converted = onnx.load(folder, msgspec.structs.replace(version, entry=entry, signature=signature))
    return ByRows(native, converted, rows, signature.inputs[0].name)


def onnx_limit(native_s: Mapping[int, float], onnx_s: Mapping[int, float]) -> int | None:
    """Up to how many rows ONNX is worth it: 0 for never, None for always.

    Both map rows to seconds a call, at the same sizes. It is worth it at a size where it takes less than the
    native time by MARGIN, and the sizes count from the smallest on, up to the first where it is not.
    >>> onnx_limit({1: 20e-6, 32: 40e-6, 256: 100e-6}, {1: 8e-6, 32: 30e-6, 256: 200e-6})
    32
    """
    limit = 0
    for rows in sorted(native_s):
        if onnx_s[rows] * MARGIN > native_s[rows]:
            return limit
        limit = rows
    return None if native_s else 0
