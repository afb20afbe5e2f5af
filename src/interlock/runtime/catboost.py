"""Owns CatBoost models: .cbm files, run by the Python package, so in an executor: its wheel has no C API.

Where `catboost_prepare.py` can, it makes ONNX of them, which has no need of this file.
"""

from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import DatatypeMismatch, LoadFailed, MissingExtra, ShapeMismatch
from interlock.core.model import Array, Signature, Tensors, TensorSpec, Version, datatype_of
from interlock.core.table import MISSING
from interlock.runtime import table as tables
from interlock.runtime.boosted import label_array, names_of
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES

EXTRA = "catboost"
KINDS = ("CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker")


class CatboostModel:
    """Classifiers give `label` and `probabilities`, others `prediction`."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self._model = model
        self._inputs = signature.inputs
        self._outputs = tuple(spec.name for spec in signature.outputs)
        self._is_matrix = tuple(spec.name for spec in signature.inputs) == (INPUT,)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: ShapeMismatch, DatatypeMismatch for a missing category; whatever CatBoost raises."""
        for spec in self._inputs:
            shape = inputs[spec.name].shape
            if len(shape) != 2 or shape[1] != spec.shape[1]:
                raise ShapeMismatch(
                    f"input {spec.name!r}: got {list(shape)}, the signature wants {list(spec.shape)}"
                )
        rows = inputs[INPUT] if self._is_matrix else self._table(inputs)
        names = self._outputs if outputs is None else outputs
        return {name: answer(self._model, name, rows) for name in self._outputs if name in names}

    def close(self) -> None:
        """Let the model go."""
        del self._model

    def _table(self, inputs: Tensors) -> Array:
        made = np.empty((len(inputs[self._inputs[0].name]), len(self._inputs)), np.object_)
        for index, spec in enumerate(self._inputs):
            values = inputs[spec.name][:, 0]
            made[:, index] = _texts(spec.name, values) if spec.datatype == "BYTES" else values
        return made


class Catboost:
    """The runtime `catboost`: `entry` is a .cbm file.

    `options["kind"]`: the class that answers (KINDS); without it, a classifier where the file has classes.
    """

    name = "catboost"

    def load(self, folder: Path, version: Version) -> CatboostModel:
        """Raises: LoadFailed with CatBoost's own words, MissingExtra."""
        model = open_model(folder / version.entry, version.options)
        signature = version.signature if version.signature.inputs else signature_of(model, version.options)
        return CatboostModel(model, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the file says of itself, and one call with zeros. Raises: LoadFailed, MissingExtra."""
        return signature_of(open_model(folder / version.entry, version.options), version.options)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def answer(model: Any, name: str, rows: Array) -> Array:
    """One output: [rows] labels, [rows, classes] probabilities, or [rows, targets]."""
    if name == PROBABILITIES:
        return np.asarray(model.predict_proba(rows, thread_count=1))
    values = np.asarray(model.predict(rows, thread_count=1))
    if name == LABEL:
        values = values.reshape(len(rows))
        return values.astype(object) if values.dtype.kind in "SU" else values
    return values.reshape(len(rows), -1)


def open_model(path: Path, options: dict[str, Any]) -> Any:
    """CatBoost's object. Raises: LoadFailed, MissingExtra."""
    try:
        import catboost
    except ImportError as error:
        raise MissingExtra(error.name or "catboost", EXTRA) from None
    if not path.is_file():
        raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
    try:
        kind = options.get("kind")
        if kind is None:
            found = catboost.CatBoost().load_model(str(path))
            kind = "CatBoostClassifier" if len(found.classes_) else "CatBoost"
        if kind not in KINDS:
            raise LoadFailed(f"option 'kind' is {kind!r}: want one of {', '.join(KINDS)}")
        model = getattr(catboost, kind)().load_model(str(path))
    except LoadFailed:
        raise
    except Exception as error:
        raise LoadFailed(f"CatBoost cannot load {path.name}: {str(error)[:500]}") from error
    if len(model.get_text_feature_indices()) or len(model.get_embedding_feature_indices()):
        raise LoadFailed(f"{path.name} takes texts or embeddings as features: want numbers and categories")
    return model


def signature_of(model: Any, options: dict[str, Any]) -> Signature:
    """What the model says of itself, and one call with zeros."""
    known = tables.table_of(options)
    names = tuple(model.feature_names_)
    categorical = set(model.get_cat_feature_indices())
    if names == tuple(map(str, range(len(names)))):
        names = names_of(known, len(names)) or (() if not categorical else names)
    width = len(model.feature_names_)
    if categorical:
        inputs = tables.specs(
            tables.Table(
                tuple((name, "BYTES" if index in categorical else "FP32") for index, name in enumerate(names))
            )
        )
    else:
        inputs = (TensorSpec(INPUT, "FP32", (-1, width)),)
    outputs = [PREDICTION] if not hasattr(model, "predict_proba") else [LABEL, PROBABILITIES]
    sample = np.zeros((2, width), np.object_ if categorical else np.float32)
    for index in categorical:
        sample[:, index] = ""
    specs = []
    for name in outputs:
        values = answer(model, name, sample)
        if name == LABEL and values.dtype.kind == "O":
            values = label_array(tuple(map(str, values)))
        specs.append(TensorSpec(name, datatype_of(values), (-1, *values.shape[1:])))
    return Signature(inputs, tuple(specs), 0, names)


def _texts(name: str, values: Array) -> list[str]:
    """Categories as text, which is how CatBoost reads whole numbers, too. Raises: DatatypeMismatch."""
    found = values.tolist()
    if MISSING in found:
        raise DatatypeMismatch(
            f"column '{name}': a category is missing, which CatBoost takes for an error; send the text that"
            " stood for it in the training data"
        )
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in found]


runtime = Catboost()
