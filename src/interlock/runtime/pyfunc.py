"""Owns MLflow models of any flavour, called through MLflow's `python_function`. This runs their code.

`entry` is "": the whole MLflow folder is the artifact. Only an executor, or the process that checks a model,
may load one, under the interpreter of the model's own environment (`environment.py`).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import (
    EnvironmentFailed,
    InterlockError,
    LoadFailed,
    OutputMismatch,
    UntrustedArtifact,
)
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec, Version, datatype_of
from interlock.core.table import column_datatype, is_matrix, texts
from interlock.runtime import examples
from interlock.runtime import table as tables
from interlock.runtime.environment import check_environment
from interlock.runtime.python import PythonModel
from interlock.runtime.table import Table

INPUT = "input"
OUTPUT = "output"
TRUST_OPTION = "trusted_digest"
"""The key of a version's options that holds the digest of the folder that somebody vouched for."""

_COLUMNS = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}
"""MLflow's types of columns; a date and time travels as text, ISO 8601."""

_log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """What an MLmodel's signature asks for. `kinds`: of a table, MLflow's type of each column; `named`: its
    columns, or tensors, have names. `listed`: the model wants the values of its one column as a list."""

    signature: Signature
    table: Table | None = None
    kinds: dict[str, str] = {}
    named: bool = True
    listed: bool = False


class Instance:
    """What MLflow loaded, as an object with `predict(inputs)`, which `PythonModel` holds to its signature."""

    def __init__(self, model: Any, asked: Asked, outputs: tuple[TensorSpec, ...]) -> None:
        self._model = model
        self._given = given(asked)
        self._outputs = {spec.name: DATATYPES[spec.datatype] for spec in outputs}
        self._only = outputs[0].name if len(outputs) == 1 else OUTPUT

    def predict(self, inputs: Tensors) -> Tensors:
        """Raises: OutputMismatch; whatever the model raises."""
        answer = named(self._model.predict(self._given(inputs)), self._only)
        return {name: _as(array, self._outputs.get(name)) for name, array in answer.items()}


class Pyfunc:
    """The runtime `pyfunc`."""

    name = "pyfunc"

    def load(self, folder: Path, version: Version) -> PythonModel:
        """Raises: LoadFailed, EnvironmentFailed, UntrustedArtifact."""
        model = _load(folder, version)
        signature = version.signature
        asked = asked_of(model.metadata)
        return PythonModel(Instance(model, asked, signature.outputs), signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """Inputs as the MLmodel file says; outputs from one call with its input example or made-up rows.

        Raises: LoadFailed, EnvironmentFailed, UntrustedArtifact.
        """
        model = _load(folder, version)
        asked = asked_of(model.metadata)
        rows = example or self.example(folder, version)
        two = (
            examples.generate(asked.signature, 2)
            if rows is None
            else examples.take(examples.fit(asked.signature, rows, True), 0, 2)
        )
        instance = Instance(model, asked, _declared_outputs(model.metadata))
        try:
            answer = instance.predict(two)
        except InterlockError:
            raise
        except Exception as error:
            raise LoadFailed(
                f"the model cannot predict from {'made-up rows' if rows is None else 'its input example'}: "
                f"{type(error).__name__}: {str(error)[:400]}; log it with an input_example that it can answer"
            ) from error
        batched = bool(answer) and all(array.ndim and len(array) == 2 for array in answer.values())
        outputs = tuple(
            TensorSpec(name, datatype_of(array), (-1, *array.shape[1:]) if batched else array.shape)
            for name, array in answer.items()
        )
        return msgspec.structs.replace(asked.signature, outputs=outputs, batch_axis=0 if batched else None)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}

    def example(self, folder: Path, version: Version) -> Tensors | None:
        """The input example in the folder by input or column, if there is one that fits the signature."""
        from mlflow.models import Model

        try:
            described = Model.load(str(folder))
            asked, found = asked_of(described), described.load_input_example(str(folder))
            rows = None if found is None else _example(found, asked)
            if rows is not None:
                examples.fit(asked.signature, rows, True)
            return rows
        except Exception as error:  # MLflow's readers raise what they like; made-up rows do then
            _log.warning("the input example is of no use: %s: %s", type(error).__name__, error)
            return None


def asked_of(described: Any) -> Asked:
    """What an MLflow `Model` says of its inputs; the outputs of the signature are empty.

    Raises: LoadFailed: no signature, or a type that no tensor holds.
    """
    signature = described.signature
    if signature is None or signature.inputs is None:
        raise LoadFailed(
            "the model has no signature, so nobody knows what it takes: log it with "
            "signature=mlflow.models.infer_signature(X, model.predict(X)), or add one to what is logged with "
            "mlflow.models.set_signature(model_uri, signature)"
        )
    if getattr(signature, "params", None):  # MLflow before 2.6 knew none
        _log.warning("the model has params, which no request can set: their defaults hold")
    specs = list(signature.inputs)
    if signature.inputs.is_tensor_spec():
        return _tensors(specs)
    unnamed = not signature.inputs.has_input_names()
    names = (
        [f"{INPUT}_{at}" if len(specs) > 1 else INPUT for at in range(len(specs))]
        if unnamed
        else [str(spec.name) for spec in specs]
    )
    kinds = {
        name: str(getattr(spec.type, "name", spec.type)) for name, spec in zip(names, specs, strict=True)
    }
    for name, kind in kinds.items():
        if kind not in _COLUMNS:
            raise LoadFailed(
                f"column {name!r} has MLflow's type {kind[:80]}, which no tensor holds: want one of "
                f"{sorted(_COLUMNS)}"
            )
    datatypes = {name: _COLUMNS[kind] for name, kind in kinds.items()}
    texts_of = tuple(name for name, datatype in datatypes.items() if datatype == "BYTES")
    table = Table(tuple(datatypes.items()), none=texts_of)
    different = set(datatypes.values())
    if len(names) > 1 and len(different) == 1 and not different & {"BYTES", "BOOL"}:
        inputs: tuple[TensorSpec, ...] = (TensorSpec(INPUT, different.pop(), (-1, len(names))),)
    else:
        inputs = tables.specs(table)
    hinted = bool(getattr(described, "_is_signature_from_type_hint", False)) and len(names) == 1 and unnamed
    return Asked(Signature(inputs, (), 0, tuple(names)), table, kinds, not unnamed, hinted)


def given(asked: Asked) -> Callable[[Tensors], Any]:
    """How inputs become what MLflow hands to the model: a DataFrame, an array, a dict of arrays, a list."""
    table = asked.table
    if table is None:
        if asked.named:
            return lambda inputs: {name: _strings(array) for name, array in inputs.items()}
        return lambda inputs: _strings(next(iter(inputs.values())))
    if is_matrix(asked.signature):
        only = asked.signature.inputs[0].name
        return lambda inputs: _finished(tables.frame_of_matrix(table, inputs[only]), {}, asked)
    return lambda inputs: _finished(tables.frame(table, inputs), inputs, asked)


def named(answer: Any, only: str) -> Tensors:
    """What a model returned, as tensors by name: columns, keys, or `only` where it is one array.

    Raises: OutputMismatch for values that no tensor holds.
    """
    if isinstance(answer, list) and answer and all(isinstance(row, dict) for row in answer):
        answer = {key: [row.get(key) for row in answer] for key in answer[0]}
    if isinstance(answer, dict):
        return {str(name): _tensor(str(name), values) for name, values in answer.items()}
    if hasattr(answer, "columns") and hasattr(answer, "iloc"):
        return {
            str(name): _tensor(str(name), answer.iloc[:, at].to_numpy())
            for at, name in enumerate(answer.columns)
        }
    if hasattr(answer, "to_numpy"):
        return {only: _tensor(only, answer.to_numpy())}
    return {only: _tensor(only, answer)}


def _load(folder: Path, version: Version) -> Any:
    if version.options.get(TRUST_OPTION) != version.digest:
        raise UntrustedArtifact(
            f"{version.key} is Python code and pickles, and nobody vouched for {version.digest}: if you know "
            f"where it comes from: interlock release {version.model} {version.number} --trust"
        )
    check_environment(version)
    try:
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except ModuleNotFoundError as error:
        if error.name == "mlflow":
            raise EnvironmentFailed("the model's environment has no mlflow") from None
        raise LoadFailed(
            f"the model needs the module {error.name!r}, which its requirements do not bring: log it again "
            "with that package in pip_requirements"
        ) from error
    except Exception as error:
        raise LoadFailed(f"MLflow cannot load it: {type(error).__name__}: {str(error)[:500]}") from error


def _tensors(specs: list[Any]) -> Asked:
    inputs = []
    for at, spec in enumerate(specs):
        name = spec.name or (f"{INPUT}_{at}" if len(specs) > 1 else INPUT)
        try:
            datatype = datatype_of(np.empty(0, spec.type))
        except InterlockError as error:
            raise LoadFailed(f"input {name!r}: {error.message}") from None
        inputs.append(TensorSpec(str(name), datatype, tuple(int(length) for length in spec.shape)))
    batched = all(spec.shape and spec.shape[0] == -1 for spec in inputs)
    return Asked(Signature(tuple(inputs), (), 0 if batched else None), named=bool(specs[0].name))


def _declared_outputs(described: Any) -> tuple[TensorSpec, ...]:
    """The one named output that the MLmodel says, whose name a bare array takes; else nothing."""
    outputs = described.signature.outputs
    specs = [] if outputs is None else list(outputs)
    if len(specs) != 1 or not getattr(specs[0], "name", None):
        return ()
    dtype = specs[0].type.to_numpy() if hasattr(specs[0].type, "to_numpy") else specs[0].type
    try:
        return (TensorSpec(str(specs[0].name), datatype_of(np.empty(0, dtype)), ()),)
    except (InterlockError, TypeError):
        return ()


def _example(found: Any, asked: Asked) -> Tensors | None:
    if asked.table is None:
        arrays = found if isinstance(found, dict) else {asked.signature.inputs[0].name: found}
        return {name: np.asarray(array) for name, array in arrays.items()}
    if not hasattr(found, "columns") or not asked.named or set(found.columns) < set(asked.table.names):
        return None
    rows: Tensors = {}
    for name, kind in asked.kinds.items():
        values = found[name]
        rows[name] = values.astype(str).to_numpy() if kind == "datetime" else values.to_numpy()
    return rows


def _finished(frame: Any, inputs: Tensors, asked: Asked) -> Any:
    """The DataFrame with what tensors cannot hold: bytes, dates; its columns by position if they have no
    names."""
    for name, kind in asked.kinds.items():
        if kind == "binary":
            frame[name] = inputs[name].reshape(-1)
        elif kind == "datetime":
            frame[name] = np.array([text or "NaT" for text in frame[name]], "datetime64[ns]")
    if not asked.named:
        frame.columns = range(len(frame.columns))
    return frame.iloc[:, 0].tolist() if asked.listed else frame


def _strings(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    made = np.empty(array.size, np.object_)
    made[:] = [
        item.decode(errors="replace") if isinstance(item, bytes) else item for item in array.ravel().tolist()
    ]
    return made.reshape(array.shape)


def _tensor(name: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O" and column_datatype(array) is None:
            array = np.asarray(array.tolist())  # rows of equal lists are a matrix
        if array.dtype.kind == "M":
            array = np.datetime_as_string(array)
        if array.dtype.kind == "O" and (kind := column_datatype(array)) != "BYTES":
            array = array.astype(DATATYPES[kind or ""])
        array = texts(array) if array.dtype.kind in "SUO" else array
        datatype_of(array)
        return array
    except (InterlockError, ValueError, TypeError, KeyError) as error:
        raise OutputMismatch(
            f"output {name!r}: the model returned what no tensor holds ({type(values).__name__}: "
            f"{str(error)[:200]}); want numbers, texts, or rows of equal length"
        ) from error


def _as(array: Array, dtype: "np.dtype[Any] | None") -> Array:
    """Numbers in the datatype of the signature, where none is lost: whole ones may have come as integers."""
    if dtype is None or array.dtype == dtype or "O" in (array.dtype.kind, dtype.kind):
        return array
    with np.errstate(invalid="ignore"):
        made = array.astype(dtype)
    same = np.array_equal(made, array, equal_nan=array.dtype.kind == "f" and dtype.kind == "f")
    return made if same else array


runtime = Pyfunc()
