"""Owns how tensors lie in the bytes that two of our processes pass each other: the codes of their dtypes, and
texts, which are u32 lengths and then the bytes of all.

Both the executors of a node and the process that answers offline use it. The other side runs code of the
model's author: what came from there is checked before it is used.
"""

from typing import Any

import numpy as np

from interlock.core.errors import MalformedMessage
from interlock.core.model import DATATYPES, Array

NUMBERS = {dtype.str: dtype for dtype in DATATYPES.values() if dtype.kind != "O"}
"""Code -> dtype of what lies there as it does in memory, little-endian."""

BYTES, STRINGS = "bytes", "str"
"""The codes of texts: `bytes`, or `str` where all are."""


def pack_texts(array: Array) -> tuple[str, bytes]:
    """The code and the bytes of a tensor of texts, in row-major order.

    Raises: TypeError if an element is neither text nor bytes; ValueError for a text that has no UTF-8;
    OverflowError for 4 GiB in one.
    >>> pack_texts(np.array(["a", "bc"]))
    ('str', b'\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00abc')
    """
    items: list[Any] = array.ravel().tolist()
    kinds = set(map(type, items))
    code = STRINGS if kinds == {str} else BYTES
    if code == STRINGS:
        items = [item.encode() for item in items]
    elif kinds != {bytes}:
        items = [_as_bytes(item) for item in items]
    lengths = np.fromiter(map(len, items), np.uint32, len(items))
    return code, lengths.tobytes() + b"".join(items)


def unpack_texts(name: str, code: str, shape: tuple[int, ...], count: int, data: bytes) -> Array:
    """The tensor `name` of texts that `data` holds; `count` is the product of `shape`.

    Raises: MalformedMessage if they are not what `code` and `shape` say.
    """
    size = len(data)
    if code not in (BYTES, STRINGS) or count * 4 > size:
        raise MalformedMessage(f"tensor {name!r}: {size} bytes of {code!r} for {count} items")
    ends = np.cumsum(np.frombuffer(data, np.uint32, count), dtype=np.int64) + count * 4
    end = int(ends[-1]) if count else 0
    if end != size:
        raise MalformedMessage(f"tensor {name!r}: lengths add up to {end} of {size} bytes")
    items: list[Any] = []
    begin = count * 4
    for end in ends.tolist():
        items.append(data[begin:end])
        begin = end
    array = np.empty(count, np.object_)
    array[:] = [item.decode(errors="replace") for item in items] if code == STRINGS else items
    return shaped(name, shape, array)


def shaped(name: str, shape: tuple[int, ...], array: Array) -> Array:
    """The elements of the tensor `name` in a shape that may be wild.

    Raises: MalformedMessage.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise MalformedMessage(f"tensor {name!r} has shape {list(shape)}: {error}") from error


def _as_bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if not isinstance(item, (bytes, bytearray, memoryview)):
        raise TypeError(f"an element is {type(item).__name__}, want bytes or str")
    return bytes(item)
