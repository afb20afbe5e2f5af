"""What a batch consists of: the inputs of its requests, joined; its outputs, held to the signature."""

from itertools import chain
from typing import Any

import numpy as np

from interlock.core.errors import OutputMismatch
from interlock.core.model import DATATYPES, Inputs, Signature, Tensors

_LISTS = {list}


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


def shapes_of(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """The shapes of one request's rows: requests whose shapes are equal can be joined.

    >>> shapes_of({"x": np.zeros((3, 4, 5)), "y": [1, 2]})
    ((4, 5), (2,))
    """
    return tuple((len(array),) if isinstance(array, list) else array.shape[1:] for array in inputs.values())


def join(inputs: list[Inputs], dtypes: dict[str, np.dtype[Any]]) -> Tensors:
    """The inputs of several requests as one batch, joined on the batch axis.

    >>> join([{"x": np.zeros((1, 2))}, {"x": np.ones((2, 2))}], {})["x"].shape
    (3, 2)
    >>> join([{"x": [1, 2]}, {"x": [3, 4]}], {"x": np.dtype("f4")})["x"].shape
    (2, 2)
    """
    joined: Tensors = {}
    for name, first in inputs[0].items():
        parts = [one[name] for one in inputs]
        kinds = set(map(type, parts))
        if kinds == _LISTS:
            # Two thirds of what `np.array` takes, which would first find out how long the lists are.
            values = np.fromiter(chain.from_iterable(parts), dtypes[name], len(parts) * len(first))
            joined[name] = values.reshape(len(parts), -1)
        elif len(parts) == 1 and not isinstance(first, list):
            joined[name] = first
        elif list in kinds:
            dtype = dtypes[name]
            joined[name] = np.concatenate(
                [np.array([part], dtype) if isinstance(part, list) else part for part in parts]
            )
        else:
            joined[name] = np.concatenate(parts)
    return joined
