"""Decides whether the outputs of a call are what a version's signature allows."""

import numpy as np

from interlock.core.errors import OutputMismatch
from interlock.core.model import DATATYPES, Signature, Tensors


class Expected:
    """What the outputs of one version must be."""

    __slots__ = ("_has_rows", "_names", "_specs")

    def __init__(self, signature: Signature) -> None:
        self._specs = {spec.name: (DATATYPES[spec.datatype], len(spec.shape)) for spec in signature.outputs}
        self._names = tuple(self._specs)
        self._has_rows = signature.batch_axis == 0

    def wrong(self, outputs: Tensors, wanted: tuple[str, ...] | None, rows: int) -> OutputMismatch | None:
        """What is wrong with the outputs of a batch of `rows` rows; None if nothing is. `wanted`: the names
        that were asked for, None for all."""
        for name in wanted or self._names:
            array = outputs.get(name)
            if array is None:
                return OutputMismatch(f"predict returned {sorted(outputs)}, the signature wants '{name}'")
            if not isinstance(array, np.ndarray):
                return OutputMismatch(f"output '{name}' is a {type(array).__name__}, want an array")
            dtype, rank = self._specs[name]
            if array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind in "SU"):
                return OutputMismatch(f"output '{name}' has dtype {array.dtype}, the signature wants {dtype}")
            if array.ndim != rank:
                return OutputMismatch(
                    f"output '{name}' has shape {array.shape}, the signature wants {rank} axes"
                )
            if self._has_rows and len(array) != rows:
                return OutputMismatch(f"output '{name}' has {len(array)} rows for a batch of {rows}")
        return None
