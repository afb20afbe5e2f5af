"""Decides the names of what a model of any framework returns, and what texts it is given."""

from typing import Any

from interlock.core.errors import DatatypeMismatch, LoadFailed
from interlock.core.model import Array

OUTPUT = "output"
"""What a model answers that returns one tensor; of a tuple `output_0`, `output_1` ..., of a dict its keys."""


def named(answer: Any) -> dict[str, Any]:
    """What a model returned, by output name; those inside one another are joined by `_`; None is left out.

    Raises: LoadFailed for anything but tensors in dicts, tuples and lists.
    >>> import numpy as np
    >>> named({"h": np.zeros(2), "parts": (np.zeros(1), None)}).keys()
    dict_keys(['h', 'parts_0'])
    """
    found: dict[str, Any] = {}
    _collect(answer, "", found)
    return found


def texts(name: str, array: Array) -> list[str]:
    """The elements of a BYTES input as text, in order.

    Raises: DatatypeMismatch for what is no UTF-8.
    """
    try:
        return [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise DatatypeMismatch(
            f"input {name!r}: an element is not UTF-8 ({error.reason} at byte {error.start}); "
            "this model's strings are text"
        ) from None


def _collect(answer: Any, name: str, found: dict[str, Any]) -> None:
    if answer is None:
        return
    if isinstance(answer, dict):
        for key, value in answer.items():
            _collect(value, f"{name}_{key}" if name else str(key), found)
    elif isinstance(answer, tuple | list):
        for index, value in enumerate(answer):
            _collect(value, f"{name or OUTPUT}_{index}", found)
    elif hasattr(answer, "dtype") and hasattr(answer, "shape"):
        found[name or OUTPUT] = answer
    else:
        raise LoadFailed(f"output {name or OUTPUT!r} is a {type(answer).__name__}, want a tensor")
