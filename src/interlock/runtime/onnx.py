"""Owns the ONNX Runtime: a session with one thread, and how its types meet the protocol's."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed
from interlock.core.model import Array, Signature, Tensors, TensorSpec, Version
from interlock.core.table import MISSING
from interlock.runtime.answers import texts
from interlock.runtime.ort import onnxruntime

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
NO_TEXT = "\uffff"
"""What a graph gets for a missing text: the letter that no text may hold, so that it is one of no row."""
_HINTS = {
    "xternal data": "register the folder that holds the graph and its weights",
    "is not a registered function/op": "it needs an operator that this runtime has not",
    "opset": "export it for an older opset",
}
"""What helps, by words of ONNX Runtime's own."""
_BFLOAT16 = 16  # TensorProto.BFLOAT16
_TRIM_BYTES = 16 * 1024 * 1024


class OnnxModel:
    """A session. Any number of threads may call `predict` at once."""

    def __init__(
        self, session: onnxruntime.InferenceSession, signature: Signature, artifact_bytes: int
    ) -> None:
        self._session = session
        self._run = session.run
        self._names = [spec.name for spec in signature.outputs]
        self._artifact_bytes = artifact_bytes
        self._texts = tuple(spec.name for spec in signature.inputs if spec.datatype == "BYTES")
        self._missing = MISSING if signature.columns else None
        self._bf16 = frozenset(
            spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype == "BF16"
        )
        # One look at load instead of one a request: most models have neither strings nor bfloat16.
        self.predict: Callable[..., Tensors] = (
            self._predict_bf16 if self._bf16 else self._predict_text if self._texts else self._predict
        )

    def close(self) -> None:
        """Destroy the session, and give a large one's pages back to the system at once."""
        del self.predict, self._run, self._session
        if self._artifact_bytes > _TRIM_BYTES:
            _trim()

    def _predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        names = self._names if outputs is None else list(outputs)
        return dict(zip(names, self._run(names, inputs), strict=True))

    def _predict_text(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        return self._predict(self._decoded(inputs), outputs)

    def _predict_bf16(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        names = self._names if outputs is None else list(outputs)
        feed = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(_to_bf16(array), _BFLOAT16)
            if name in self._bf16
            else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in self._decoded(inputs).items()
        }
        results = self._session.run_with_ort_values(names, feed)
        return {
            name: _from_bf16(value) if name in self._bf16 else value.numpy()
            for name, value in zip(names, results, strict=True)
        }

    def _decoded(self, inputs: Tensors) -> Tensors:
        """ONNX strings are text: given bytes, ONNX Runtime would take their printed form."""
        return {
            name: _text(name, array, self._missing) if name in self._texts else array
            for name, array in inputs.items()
        }


class Onnx:
    """The runtime `onnx`: `entry` is the .onnx file."""

    name = "onnx"

    def load(self, folder: Path, version: Version) -> OnnxModel:
        """Read the graph into a session.

        Raises: LoadFailed with ONNX Runtime's own words; also for weights outside of the folder, and for
        outputs that are no tensors.
        """
        session = open_session(folder / version.entry)
        signature = version.signature if version.signature.inputs else _signature(session)
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return OnnxModel(session, signature, size_bytes)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the graph says of itself. Raises: LoadFailed."""
        return _signature(open_session(folder / version.entry))

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """A session may be shared by threads; the rest is found by measurement."""
        return {"thread_safe": True}


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session with one thread. Raises: LoadFailed with ONNX Runtime's own words."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not path.is_file():
        raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises a family of its own, without a common root
        words = str(error)[:800]
        hint = next((hint for part, hint in _HINTS.items() if part in words), "export the model again")
        raise LoadFailed(f"ONNX Runtime cannot load {path.name}: {words}; {hint}") from error


def _signature(session: onnxruntime.InferenceSession) -> Signature:
    inputs = tuple(_spec(node, "input") for node in session.get_inputs())
    outputs = tuple(_spec(node, "output") for node in session.get_outputs())
    if not inputs or not outputs:
        raise LoadFailed(
            f"the graph has {len(inputs)} inputs and {len(outputs)} outputs: want at least one of each"
        )
    rows = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(inputs, outputs, 0 if rows else None)


def _spec(node: Any, role: str) -> TensorSpec:
    try:
        datatype = _DATATYPES[node.type]
    except KeyError:
        hint = "; convert it with zipmap=False" if "map(" in node.type else ""
        raise LoadFailed(f"{role} {node.name!r} is {node.type}, want a tensor{hint}") from None
    return TensorSpec(node.name, datatype, tuple(d if isinstance(d, int) else -1 for d in node.shape or ()))


def _text(name: str, array: Array, missing: bytes | None) -> Array:
    if missing is not None:
        array = np.where(array == missing, NO_TEXT, array)
    result = np.empty(array.size, object)
    result[:] = texts(name, array)
    return result.reshape(array.shape)


def _to_bf16(array: Array) -> Array:
    """float32 to the upper 16 bits, rounded to the nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def _from_bf16(value: Any) -> Array:
    # OrtValue.numpy() and DLPack refuse bfloat16 (1.32), so its memory is read where it lies.
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, np.float32)
    pointer = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    bits = np.ctypeslib.as_array(pointer, (count,)).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


def _trim() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # no glibc here: the allocator gives pages back in its own time


runtime = Onnx()
