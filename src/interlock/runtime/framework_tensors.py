"""Decides what tensors of PyTorch, Keras and TensorFlow are to a signature, and holds inputs to it."""

from typing import Any

import numpy as np

from interlock.core.errors import InputMismatch, LoadFailed, ShapeMismatch
from interlock.core.model import DATATYPES, Array, Tensors, TensorSpec

DATATYPES_BY_NAME = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}


def datatype_of(dtype: Any) -> str | None:
    """The datatype of a dtype of PyTorch, Keras or TensorFlow, or of its name; None for one we cannot carry.

    >>> datatype_of("torch.float32"), datatype_of("string"), datatype_of("complex64")
    ('FP32', 'BYTES', None)
    """
    name = getattr(dtype, "name", None) or str(dtype)
    return DATATYPES_BY_NAME.get(name.removeprefix("torch."))


def taken(spec: TensorSpec, inputs: Tensors) -> Array:
    """One input, in a shape of its spec. Raises: InputMismatch, ShapeMismatch."""
    array = inputs.get(spec.name)
    if array is None:
        raise InputMismatch(f"input {spec.name!r} is missing; got {sorted(inputs)}")
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, got) for got, want in zip(array.shape, spec.shape, strict=True)
    ):
        raise ShapeMismatch(
            f"input {spec.name!r}: got {list(array.shape)}, the signature wants {list(spec.shape)}"
        )
    return array


def held(spec: TensorSpec, inputs: Tensors) -> Array:
    """One input, in the dtype and a shape of its spec. Raises: InputMismatch, ShapeMismatch."""
    return np.asarray(taken(spec, inputs), DATATYPES[spec.datatype])


def spec_of(name: str, value: Any) -> TensorSpec:
    """The spec of a symbolic tensor of Keras or TensorFlow. Raises: LoadFailed for one we cannot carry."""
    datatype = datatype_of(value.dtype)
    if datatype is None:
        said = getattr(value.dtype, "name", None) or str(value.dtype)
        raise LoadFailed(f"{name!r} is {said}, want a tensor of {sorted(DATATYPES_BY_NAME)}")
    if getattr(value.shape, "rank", 0) is None:
        raise LoadFailed(f"{name!r} has a shape of unknown rank: save the model with one")
    return TensorSpec(name, datatype, tuple(-1 if length is None else int(length) for length in value.shape))
