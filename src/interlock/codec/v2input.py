"""Decides what one input of an infer message holds, step by step: its data, or why it cannot be taken."""

import math
from typing import Any

import msgspec
import numpy as np

from interlock.codec.raw import unpack
from interlock.codec.v2json import JSON_DATATYPES, Input, Message, flatten
from interlock.core.errors import (
    DatatypeMismatch,
    InputMismatch,
    MalformedMessage,
    ShapeMismatch,
    Unsupported,
)
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec
from interlock.core.table import MISSING, conform

NO_SHARED_MEMORY = "shared memory regions are not offered; send and ask for binary data"


def table(
    message: Message, binary: memoryview, has_header: bool, signature: Signature
) -> tuple[Tensors, int]:
    """The inputs of a tabular model and their rows, in whichever form, datatypes and shapes the columns came.

    Raises: InvalidRequest's children; Unsupported.
    """
    at = 0
    sent: Tensors = {}
    for one in message.inputs:
        if one.name in sent:
            raise InputMismatch(f"input '{one.name}' is there twice; send it once")
        spec = TensorSpec(one.name, one.datatype, one.shape)
        size = binary_size(one, len(binary) - at, has_header)
        if size is None:
            sent[one.name] = _column(one, spec)
        else:
            sent[one.name] = unpack(
                one.name, one.datatype, one.shape, math.prod(one.shape), binary[at : at + size]
            )
            at += size
    check_end(at, binary)
    tensors = conform(signature, sent)
    rows = len(next(iter(tensors.values())))
    if not rows:
        raise ShapeMismatch(f"input '{message.inputs[0].name}' has no rows; send at least one")
    return tensors, rows


def check_spec(one: Input, spec: TensorSpec, batch_axis: int | None) -> None:
    if one.datatype != spec.datatype:
        raise DatatypeMismatch(
            f"input '{one.name}': got datatype {one.datatype}; the signature wants {spec.datatype}"
        )
    wanted = spec.shape
    if len(one.shape) != len(wanted) or any(
        size not in (-1, came) for came, size in zip(one.shape, wanted, strict=True)
    ):
        raise ShapeMismatch(
            f"input '{one.name}': got shape {list(one.shape)}; the signature wants {list(wanted)}"
        )
    if batch_axis == 0 and wanted and wanted[0] < 0 and one.shape[0] == 0:
        raise ShapeMismatch(
            f"input '{one.name}': got shape {list(one.shape)}, which has no rows; send at least one"
        )


def binary_size(one: Input, left: int, has_header: bool) -> int | None:
    """Bytes of the input's binary data, or None if its data is in the JSON."""
    parameters = one.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise Unsupported(f"input '{one.name}': {NO_SHARED_MEMORY}")
    size = None if parameters is None else parameters.binary_data_size
    if size is None:
        if one.data is msgspec.UNSET:
            raise InputMismatch(
                f"input '{one.name}' has no data; send 'data', or parameters.binary_data_size"
            )
        return None
    if one.data is not msgspec.UNSET:
        raise InputMismatch(f"input '{one.name}' has both data and binary_data_size; send one of them")
    if not has_header:
        raise MalformedMessage(
            f"input '{one.name}' has binary_data_size {size}, but no Inference-Header-Content-Length"
            f" tells where the JSON ends"
        )
    if not 0 <= size <= left:
        raise MalformedMessage(
            f"input '{one.name}': binary_data_size is {size}, the body has {left} bytes left"
        )
    return size


def from_json(one: Input, spec: TensorSpec) -> Array:
    if spec.datatype not in JSON_DATATYPES:
        raise DatatypeMismatch(
            f"input '{spec.name}' is {spec.datatype}, which JSON cannot carry; send it as binary data"
        )
    if spec.datatype == "BYTES":
        return strings(spec, one.shape, one.data)
    values = flatten(spec, one.shape, one.data)
    _check_count(spec, one.shape, len(values))
    return np.array(values, DATATYPES[spec.datatype]).reshape(one.shape)


def _column(one: Input, spec: TensorSpec) -> Array:
    """As `_from_json`, for part of a table, in which `null` says that a number or a text is missing."""
    if spec.datatype not in ("FP32", "FP64", "BYTES") or not isinstance(one.data, list):
        return from_json(one, spec)
    missing = np.array([value is None for value in _leaves(one.data)], np.bool_)
    if not missing.any():
        return from_json(one, spec)
    fill: Any = "" if spec.datatype == "BYTES" else 0.0
    array = from_json(msgspec.structs.replace(one, data=_filled(one.data, fill)), spec)
    array[missing.reshape(array.shape)] = MISSING if spec.datatype == "BYTES" else np.nan
    return array


def _leaves(data: list[Any]) -> list[Any]:
    return [leaf for entry in data for leaf in (entry if isinstance(entry, list) else (entry,))]


def _filled(data: list[Any], fill: Any) -> list[Any]:
    return [
        [fill if leaf is None else leaf for leaf in entry]
        if isinstance(entry, list)
        else fill
        if entry is None
        else entry
        for entry in data
    ]


def check_end(at: int, binary: memoryview) -> None:
    if at != len(binary):
        raise MalformedMessage(
            f"{len(binary) - at} bytes are left over behind the binary inputs; check binary_data_size and"
            f" Inference-Header-Content-Length"
        )


def strings(spec: TensorSpec, shape: tuple[int, ...], data: Any) -> Array:
    values = flatten(spec, shape, data)
    _check_count(spec, shape, len(values))
    array = np.empty(len(values), np.object_)
    array[:] = [value.encode() for value in values]
    return array.reshape(shape)


def _check_count(spec: TensorSpec, shape: tuple[int, ...], count: int) -> None:
    if math.prod(shape) != count:
        raise ShapeMismatch(
            f"input '{spec.name}': shape {list(shape)} takes {math.prod(shape)} values, data has {count}"
        )
