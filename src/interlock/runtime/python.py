"""Owns plain Python models: a class with `predict(inputs)` in a file of the artifact, or with a generator
`stream(inputs)`. This runs its code.

Only an executor, or the process that checks a model, may load one.
"""

import importlib.util
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import (
    ConfigError,
    LoadFailed,
    OutputMismatch,
    PredictFailed,
    ShapeMismatch,
    said,
)
from interlock.core.model import (
    DATATYPES,
    Array,
    Capabilities,
    Signature,
    Tensors,
    TensorSpec,
    Version,
    datatype_of,
)
from interlock.runtime.examples import ONLY, stacked
from interlock.runtime.table import OPTION

_CAPABILITIES = frozenset(Capabilities.__struct_fields__)


class PythonModel:
    """An instance of the user's class, held to its signature in both directions."""

    def __init__(self, instance: Any, signature: Signature) -> None:
        self.instance = instance
        self._signature = signature
        self._predict = instance.predict
        self._shapes = tuple((spec.name, spec.shape) for spec in signature.inputs)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: ShapeMismatch, OutputMismatch; whatever the class raises."""
        rows = None
        for name, wanted in self._shapes:
            shape = inputs[name].shape
            if not _fits(shape, wanted):
                raise ShapeMismatch(f"input {name!r}: got {list(shape)}, the signature wants {list(wanted)}")
            rows = shape[0] if wanted else rows
        result = self._predict(inputs)
        if not isinstance(result, dict):
            raise OutputMismatch(f"predict returned {type(result).__name__}, want a dict of name to array")
        if not self._signature.outputs:
            return {name: as_array(name, array) for name, array in result.items()}
        answer = {}
        for spec in self._signature.outputs:
            if outputs is not None and spec.name not in outputs:
                continue
            if spec.name not in result:
                raise OutputMismatch(f"predict returned {sorted(result)}, output {spec.name!r} is missing")
            array = as_array(spec.name, result[spec.name])
            expected = (rows, *spec.shape[1:]) if self._signature.batch_axis == 0 else spec.shape
            if array.dtype != DATATYPES[spec.datatype] or not _fits(array.shape, expected):
                raise OutputMismatch(
                    f"output {spec.name!r}: predict returned {array.dtype} {list(array.shape)}, "
                    f"the signature wants {spec.datatype} {list(expected)}"
                )
            answer[spec.name] = array
        return answer

    def close(self) -> None:
        """Call the class's `close`, if it has one."""
        _close(self.instance)


class PythonStream:
    """An instance of the user's class that answers in parts; each is held to the signature, in any number of
    rows."""

    def __init__(self, instance: Any, signature: Signature) -> None:
        self.instance = instance
        self._signature = signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: PredictFailed: there is no one answer."""
        raise PredictFailed("the model answers in parts: call `stream`")

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...] | None = None
    ) -> Generator[Tensors, None, None]:
        """Raises: ShapeMismatch, OutputMismatch; whatever the class raises."""
        for spec in self._signature.inputs:
            shape = inputs[spec.name].shape
            if not _fits(shape, spec.shape):
                raise ShapeMismatch(
                    f"input {spec.name!r}: got {list(shape)}, the signature wants {list(spec.shape)}"
                )
        parts = self.instance.stream(inputs)
        try:
            for part in parts:
                yield self._held(part, outputs)
        finally:
            _close(parts)  # now, not when it is collected: it may hold what the next one needs

    def _held(self, part: Any, outputs: tuple[str, ...] | None) -> Tensors:
        if not isinstance(part, dict):
            raise OutputMismatch(f"stream gave a {type(part).__name__}, want dicts of name to array")
        if not self._signature.outputs:
            return {name: as_array(name, array) for name, array in part.items()}
        answer = {}
        for spec in self._signature.outputs:
            if outputs is not None and spec.name not in outputs:
                continue
            if spec.name not in part:
                raise OutputMismatch(f"stream gave {sorted(part)}, output {spec.name!r} is missing")
            array = as_array(spec.name, part[spec.name])
            if array.dtype != DATATYPES[spec.datatype] or not _fits(array.shape, spec.shape):
                raise OutputMismatch(
                    f"output {spec.name!r}: a part of the stream has {array.dtype} {list(array.shape)}, "
                    f"the signature wants {spec.datatype} {list(spec.shape)}"
                )
            answer[spec.name] = array
        return answer

    def close(self) -> None:
        """Call the class's `close`, if it has one."""
        _close(self.instance)


class Python:
    """The runtime `python`: `entry` is "file.py:Class".

    A class with `stream` and without `predict` streams; one with both does if its `streaming` is True.

    The class takes no arguments. `load(folder)`, `close()`, `signature` and the names of Capabilities are
    optional members; `signature` is a `Signature` or `{"inputs": {name: (datatype, shape)}, "outputs": …}`.
    """

    name = "python"

    def load(self, folder: Path, version: Version) -> PythonModel | PythonStream:
        """Import the file and make an instance.

        Raises: LoadFailed with the type and words of what the code raised.
        """
        instance = _instance(folder, version.entry)
        signature = version.signature
        if not signature.inputs:
            signature = _declared_signature(instance) or signature
        return (PythonStream if _streams(type(instance)) else PythonModel)(instance, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """The class's own `signature`, or what one call with `example` shows.

        Raises: LoadFailed, also when there is neither.
        """
        instance = _instance(folder, version.entry)
        declared = _declared_signature(instance)
        if declared is not None:
            return declared
        if not example:
            raise LoadFailed(
                f"{version.entry}: the class has no `signature` and there is no reference data to call it "
                "with: add one of the two"
            )
        if ONLY in example or OPTION in version.options:
            example = as_inputs(example)
        try:
            if _streams(type(instance)):
                return _seen_stream(instance, example)
            answer = PythonModel(instance, Signature((), ())).predict(example)
        except OutputMismatch as error:
            raise LoadFailed(f"{version.entry}: {error.message}") from error
        except Exception as error:
            method = "stream" if _streams(type(instance)) else "predict"
            given = ", ".join(f"{name!r} {list(array.shape)}" for name, array in example.items())
            raise LoadFailed(
                f"{version.entry}: {method} raised on the reference data: {said(error)}; "
                f"it was given {given} (a table is one input, 'input'): declare a `signature`, or give an "
                ".npz with one array an input"
            ) from error
        rows = len(next(iter(example.values())))
        batched = bool(answer) and all(array.ndim and len(array) == rows for array in answer.values())
        return Signature(
            tuple(_spec(name, array, True) for name, array in example.items()),
            tuple(_spec(name, array, batched) for name, array in answer.items()),
            0 if batched else None,
        )

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """The Capabilities that the class names as attributes."""
        kind = _class(folder, version.entry)
        found = {name: getattr(kind, name) for name in sorted(_CAPABILITIES) if hasattr(kind, name)}
        return {**found, "streaming": True} if _streams(kind) else found


def as_inputs(example: Tensors) -> Tensors:
    """Reference rows as a class gets them that says nothing of its inputs: a table of numbers is one input,
    `input`; any other table is one [rows, 1] a column."""
    joined = example[ONLY] if ONLY in example else stacked(example)
    if joined is not None:
        return {"input": joined}
    return {name: array[:, None] if array.ndim == 1 else array for name, array in example.items()}


def as_array(name: str, value: Any) -> Array:
    """What a model returned as an output, as an array that the protocol can carry; strings become objects.

    Raises: OutputMismatch.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise OutputMismatch(f"output {name!r} is no array: {said(error, 200)}") from None
    return array.astype(object) if array.dtype.kind in "SU" else array


def _class(folder: Path, entry: str) -> Any:
    file_name, _, class_name = entry.partition(":")
    path = folder / file_name
    if not class_name or path.suffix != ".py" or "/" in file_name or not path.is_file():
        raise LoadFailed(
            f"entry {entry!r}: want 'file.py:Class' with the file in the artifact folder {folder}"
        )
    module_name = f"interlock_artifact_{folder.name[:16]}_{path.stem}"
    module = sys.modules.get(module_name)
    if module is None or module.__file__ != str(path):
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise LoadFailed(f"entry {entry!r}: {path} cannot be imported as a module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))  # for its sibling modules; this process serves one version only
        # Bytecode beside the source would be in the artifact folder, and change its digest.
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise LoadFailed(f"{file_name}, on import, raised {said(error)}{_remedy(error)}") from error
        finally:
            sys.dont_write_bytecode = before
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type) or not any(callable(getattr(kind, n, None)) for n in ("predict", "stream")):
        raise LoadFailed(
            f"{file_name} has no class {class_name!r} with a predict(inputs) or stream(inputs) method"
        )
    if getattr(kind, "streaming", False) and not callable(getattr(kind, "stream", None)):
        raise LoadFailed(f"{entry}: the class says `streaming = True` and has no stream(inputs) method")
    return kind


def _streams(kind: Any) -> bool:
    return callable(getattr(kind, "stream", None)) and (
        not callable(getattr(kind, "predict", None)) or getattr(kind, "streaming", False) is True
    )


def _seen_stream(instance: Any, example: Tensors) -> Signature:
    parts = PythonStream(instance, Signature((), ())).stream(example)
    first = next(parts, None)
    parts.close()
    if first is None:
        raise LoadFailed("the stream had no part")
    return Signature(
        tuple(_spec(name, array, True) for name, array in example.items()),
        tuple(_spec(name, array, True) for name, array in first.items()),
        None,
    )


def _close(thing: Any) -> None:
    close = getattr(thing, "close", None)
    if close is not None:
        close()


def _instance(folder: Path, entry: str) -> Any:
    kind = _class(folder, entry)
    try:
        instance = kind()
        if hasattr(instance, "load"):
            instance.load(folder)
    except Exception as error:
        raise LoadFailed(f"{entry}, on load, raised {said(error)}{_remedy(error)}") from error
    return instance


def _declared_signature(instance: Any) -> Signature | None:
    declared = getattr(instance, "signature", None)
    if declared is None or isinstance(declared, Signature):
        return declared
    try:
        inputs, outputs = (
            tuple(
                msgspec.convert({"name": name, "datatype": datatype, "shape": list(shape)}, TensorSpec)
                for name, (datatype, shape) in declared[role].items()
            )
            for role in ("inputs", "outputs")
        )
    except (TypeError, KeyError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise LoadFailed(
            f"`signature` of the class: {error!r}; want a Signature or a dict with 'inputs' and 'outputs', "
            "each {name: (datatype, shape)}"
        ) from error
    for spec in (*inputs, *outputs):
        if spec.datatype not in DATATYPES:
            raise LoadFailed(
                f"`signature` of the class: {spec.name!r} is {spec.datatype!r}, want one of {list(DATATYPES)}"
            )
    batched = declared.get("batch_axis", 0 if isinstance(declared, Mapping) else None)
    rows = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(inputs, outputs, 0 if rows and batched == 0 else None)


def _spec(name: str, array: Array, batched: bool) -> TensorSpec:
    try:
        datatype = datatype_of(array)
    except ConfigError as error:
        raise LoadFailed(f"{name!r}: {error.message}; want numbers, booleans or texts") from None
    return TensorSpec(
        name, datatype, (-1 if batched else array.shape[0], *array.shape[1:]) if array.ndim else ()
    )


def _remedy(error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return f": install {error.name!r} for the node, or put its file into the model's folder"


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, None, got) for got, want in zip(shape, wanted, strict=True)
    )


runtime = Python()
