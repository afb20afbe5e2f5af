"""Decides how tensors lie in bytes: little-endian, row-major; BYTES with lengths; BF16 as float32.

The layout of the binary tensor data extension (Triton, KServe) and of gRPC's `raw_input_contents`.
"""

import struct
import sys

import numpy as np

from interlock.core.errors import (
    ConfigError,
    DatatypeMismatch,
    OutputMismatch,
    RequestTooLarge,
    ShapeMismatch,
)
from interlock.core.model import DATATYPES, Array

if sys.byteorder != "little":
    raise ConfigError(f"tensors travel little-endian and are read in place; this machine is {sys.byteorder}")

ITEM_BYTES: dict[str, int] = {
    name: 2 if name == "BF16" else dtype.itemsize for name, dtype in DATATYPES.items() if name != "BYTES"
}
"""Bytes of one element on the wire; BYTES has no fixed size."""

MOST_TEXTS = 2**20
"""Elements of one BYTES tensor. They are taken apart one by one on the loop, 0.7 us each: without a bound, 60
MiB of short strings would hold it for longer than a worker may be silent."""

_LENGTH = struct.Struct("<I")
_UINT16 = np.dtype(np.uint16)
_UINT32 = np.dtype(np.uint32)
_FLOAT32 = np.dtype(np.float32)


def unpack(name: str, datatype: str, shape: tuple[int, ...], count: int, data: memoryview) -> Array:
    """The tensor of input `name` that lies in `data`; `count` is the product of `shape`.

    The result shares memory with `data` (and is then read-only) where the layout permits; BYTES elements
    are `bytes` objects.
    Raises: ShapeMismatch if `data` has another length than the shape needs; DatatypeMismatch;
    RequestTooLarge.
    """
    if datatype == "BYTES":
        return _unpack_bytes(name, shape, count, data)
    wanted = count * ITEM_BYTES[datatype]
    if data.nbytes != wanted:
        raise ShapeMismatch(
            f"input '{name}': {data.nbytes} bytes of binary data; shape {list(shape)} of {datatype} takes"
            f" {wanted}"
        )
    if datatype == "BF16":
        return _from_bf16(np.frombuffer(data, _UINT16)).reshape(shape)
    array = np.frombuffer(data, DATATYPES[datatype]).reshape(shape)
    if datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        wrong = next(byte for byte in data if byte > 1)
        raise DatatypeMismatch(f"input '{name}': byte {wrong} is no BOOL: send 0 for false and 1 for true")
    # Compiled models read vectors from the pointer as it is, and may crash on one between two elements.
    # A client that pads its JSON header with blanks to a multiple of 8 bytes saves this copy.
    return array if array.flags.aligned else array.copy()


def _unpack_bytes(name: str, shape: tuple[int, ...], count: int, data: memoryview) -> Array:
    size = data.nbytes
    # Every element takes 4 bytes at least: a shape that lies cannot make us allocate more than was sent.
    if count * 4 > size:
        raise ShapeMismatch(
            f"input '{name}': {size} bytes of binary data cannot hold the {count} elements of shape"
            f" {list(shape)}: each takes its length in 4 bytes, then its bytes"
        )
    if count > MOST_TEXTS:
        raise RequestTooLarge(
            f"input '{name}': {count} BYTES elements in one tensor; the limit is {MOST_TEXTS}: send fewer"
            f" rows"
        )
    array = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        if at + 4 > size:
            raise ShapeMismatch(
                f"input '{name}': the binary data ends after {index} of {count} BYTES elements"
            )
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > size:
            raise ShapeMismatch(
                f"input '{name}': BYTES element {index} says that it has {length} bytes, {size - at} are left"
            )
        array[index] = bytes(data[at : at + length])
        at += length
    if at != size:
        raise ShapeMismatch(
            f"input '{name}': {size - at} bytes are left over after the {count} BYTES elements of shape"
            f" {list(shape)}"
        )
    return array.reshape(shape)


def pack(name: str, datatype: str, array: Array) -> memoryview | bytes:
    """The bytes of output `name`, without a copy where its memory is row-major.

    Raises: OutputMismatch if a BYTES element is neither `bytes` nor `str`.
    """
    if datatype == "BYTES":
        parts: list[bytes] = []
        for text in texts(name, array):
            parts.append(_LENGTH.pack(len(text)))
            parts.append(text)
        return b"".join(parts)
    if not array.size:
        return b""
    if datatype == "BF16":
        array = _to_bf16(array)
    elif not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.data.cast("B")


def texts(name: str, array: Array) -> list[bytes]:
    """The elements of a tensor of strings in row-major order, as bytes.

    Raises: OutputMismatch if one is neither `bytes` nor `str`.
    """
    elements = array.ravel().tolist()
    for index, element in enumerate(elements):
        if type(element) is not bytes:
            if not isinstance(element, str | bytes):
                raise OutputMismatch(
                    f"output '{name}': element {index} is of type {type(element).__name__}; BYTES needs str"
                    f" or bytes"
                )
            elements[index] = element.encode() if isinstance(element, str) else bytes(element)
    return elements


def _from_bf16(half: Array) -> Array:
    return (half.astype(_UINT32) << np.uint32(16)).view(_FLOAT32)


def _to_bf16(array: Array) -> Array:
    """Round to nearest, ties to even, as hardware does; a NaN stays one."""
    bits = np.ascontiguousarray(array, _FLOAT32).reshape(-1).view(_UINT32)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    high = bits >> np.uint32(16)
    # A NaN's payload near the top would carry into the sign: the sum may wrap, and is replaced below.
    rounded = (bits + (np.uint32(0x7FFF) + (high & np.uint32(1)))) >> np.uint32(16)
    return np.where(nan, high | np.uint32(0x0040), rounded).astype(_UINT16)
