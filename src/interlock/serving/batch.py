"""What a batch consists of: the inputs of its requests, joined."""

from itertools import chain
from typing import Any

import numpy as np

from interlock.core.model import Inputs, Tensors

_LISTS = {list}


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
