"""Owns scikit-learn models kept as they are: skops files of trusted types, pickles of a trusted digest."""

import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra, ShapeMismatch, UntrustedArtifact, said
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec, Version, datatype_of
from interlock.runtime import pickles
from interlock.runtime import table as tables
from interlock.runtime.table import Table, table_of

INPUT = "input"
LABEL = "label"
PROBABILITIES = "probabilities"
PREDICTION = "prediction"
"""What regressors and other models without classes answer, always [rows, targets]."""

FAMILIES = ("sklearn.", "numpy.", "scipy.", "_loss.", "xgboost.", "lightgbm.", "collections.")
"""Packages whose types a skops file may build without anybody vouching for them: constructing them runs
nothing that the file brings."""


MOST_SCHEMA_BYTES = 64 * 1024**2
"""Of the description in a .skops file, which is read whole before anything of it is trusted."""


class SklearnModel:
    """Classifiers give `label` and `probabilities`, others `prediction`.

    `table`: the estimator gets a DataFrame of these columns; without one, the array of its one input.
    """

    def __init__(self, estimator: Any, signature: Signature, table: Table | None = None) -> None:
        self.estimator = estimator
        self._shapes = tuple((spec.name, spec.shape[1]) for spec in signature.inputs)
        self._rows = _reader(signature, table)
        self._dtypes = {spec.name: DATATYPES[spec.datatype] for spec in signature.outputs}
        self._by_vote = labels_by_vote(estimator)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: ShapeMismatch; whatever the estimator raises."""
        for name, width in self._shapes:
            shape = inputs[name].shape
            if len(shape) != 2 or shape[1] != width:
                raise ShapeMismatch(f"input {name!r}: got {list(shape)}, the signature wants [-1, {width}]")
        rows = self._rows(inputs)
        names = [name for name in self._dtypes if outputs is None or name in outputs]
        if self._by_vote and LABEL in names and PROBABILITIES in names:
            probabilities = answer(self.estimator, PROBABILITIES, rows)
            labels = _texts_as_objects(self.estimator.classes_.take(np.argmax(probabilities, axis=1)))
            found = {LABEL: labels, PROBABILITIES: probabilities}
        else:
            found = {name: answer(self.estimator, name, rows) for name in names}
        return {name: found[name].astype(self._dtypes[name], copy=False) for name in names}

    def close(self) -> None:
        """Let the estimator go."""
        del self.estimator


class Sklearn:
    """The runtime `sklearn`: `entry` is a .skops file, or a pickle with SHA-256 `options["trusted_sha256"]`.

    `options["trusted_types"]`: types outside of the known families that the file may build; `["table"]`: the
    columns of its data (`table.py`); `["named"]`: it wants them as a DataFrame although all are numbers.
    """

    name = "sklearn"

    def load(self, folder: Path, version: Version) -> SklearnModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        estimator = load_file(folder / version.entry, version.options)
        table = table_of(version.options)
        signature = version.signature
        if not signature.inputs:
            signature = signature_of(estimator, None, "FP32", table, bool(version.options.get("named")))
        wants_frame = table is not None and (version.options.get("named") or len(signature.inputs) > 1)
        return SklearnModel(estimator, signature, table if wants_frame else None)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """From the estimator and one call with two rows.

        Raises: LoadFailed, MissingExtra, UntrustedArtifact.
        """
        estimator = load_file(folder / version.entry, version.options)
        datatype = version.options.get("input_datatype", "FP32")
        table = table_of(version.options)
        return signature_of(estimator, example, datatype, table, bool(version.options.get("named")))

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def answer(estimator: Any, name: str, rows: Array) -> Array:
    """One output of an estimator: [rows] labels, [rows, classes] probabilities, or [rows, targets]."""
    if name == PROBABILITIES:
        return np.asarray(estimator.predict_proba(rows))
    values = np.asarray(estimator.predict(rows))
    return _texts_as_objects(values) if name == LABEL else values.reshape(len(values), -1)


def labels_by_vote(estimator: Any) -> bool:
    """Whether `predict` is, by its own code, the class with the largest of `predict_proba`: both take one
    pass over the trees."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import Pipeline

    last = estimator.steps[-1][1] if type(estimator) is Pipeline else estimator
    if getattr(type(last), "predict", None) is not RandomForestClassifier.predict:  # extra trees have it, too
        return False
    return bool(last.n_outputs_ == 1)


def _texts_as_objects(values: Array) -> Array:
    return values.astype(object) if values.dtype.kind in "SU" else values


def signature_of(
    estimator: Any, example: Tensors | None, datatype: str, table: Table | None = None, named: bool = False
) -> Signature:
    """What an estimator takes and gives; rows of `example` are tried, else zeros are.

    A `table` of numbers is one input of `datatype`, any other one input a column; `named`: the estimator
    wants a DataFrame.
    Raises: LoadFailed if it cannot predict from them.
    """
    if table is not None and not table.is_numeric:
        inputs = tables.specs(table)
        columns = _sample_columns(table, example)
        rows = tables.frame(table, columns)
        tried: Tensors = {name: values.reshape(-1, 1) for name, values in columns.items()}
        return Signature(inputs, _outputs(estimator, rows, "FP64", _shown(tried)), 0, table.names)
    matrix = _sample_matrix(estimator, example, table)
    sample = matrix.astype(DATATYPES[datatype])
    if datatype == "FP32":
        try:
            estimator.predict(_as_wanted(sample, table, named))
        except (TypeError, ValueError):
            # compiled for float64 only, as KMeans is
            return signature_of(estimator, example, "FP64", table, named)
    spec = TensorSpec(INPUT, datatype, (-1, sample.shape[1]))
    outputs = _outputs(estimator, _as_wanted(sample, table, named), datatype, f"floats {list(sample.shape)}")
    return Signature((spec,), outputs, 0, () if table is None else table.names)


def _reader(signature: Signature, table: Table | None) -> Callable[[Tensors], Any]:
    if table is None:
        return lambda inputs: inputs[INPUT]
    if len(signature.inputs) == 1 and signature.inputs[0].name not in table.names:
        return lambda inputs: tables.frame_of_matrix(table, inputs[INPUT])
    return lambda inputs: tables.frame(table, inputs)


def _as_wanted(matrix: Array, table: Table | None, named: bool) -> Any:
    return tables.frame_of_matrix(table, matrix) if named and table is not None else matrix


def _sample_matrix(estimator: Any, example: Tensors | None, table: Table | None) -> Array:
    """Two rows, or fewer [rows, columns]."""
    if example:
        given = next(iter(example.values()))
        if table is not None and set(table.names) <= set(example):
            return np.column_stack([example[name].reshape(-1)[:2].astype(np.float64) for name in table.names])
        if given.ndim == 2:
            return np.asarray(given[:2], np.float64)
    width = len(table.names) if table is not None else getattr(estimator, "n_features_in_", None)
    if width is None:
        raise LoadFailed(
            f"{type(estimator).__name__} does not say how many columns it takes (n_features_in_): "
            "is it fitted? Otherwise give reference data"
        )
    return np.zeros((2, width))


def _sample_columns(table: Table, example: Tensors | None) -> Tensors:
    if example and set(table.names) <= set(example):
        return {name: example[name].reshape(-1)[:2] for name in table.names}
    made: Tensors = {}
    for name, datatype in table.columns:
        known = table.categories.get(name)
        fill = b"" if datatype == "BYTES" else 0
        if known:
            fill = known[0].encode() if isinstance(known[0], str) else known[0]  # type: ignore[assignment]
        made[name] = np.array([fill, fill], DATATYPES[datatype])
    return made


def _outputs(estimator: Any, rows: Any, datatype: str, shown: str) -> tuple[TensorSpec, ...]:
    wanted = [PREDICTION] if not hasattr(estimator, "classes_") else [LABEL]
    if wanted == [LABEL] and hasattr(estimator, "predict_proba"):
        wanted.append(PROBABILITIES)
    outputs = []
    for name in wanted:
        try:
            value = answer(estimator, name, rows)
        except Exception as error:
            raise LoadFailed(
                f"{type(estimator).__name__} cannot predict from {shown}: {said(error, 300)}"
            ) from error
        kind = datatype if value.dtype.kind == "f" else datatype_of(value)
        outputs.append(TensorSpec(name, kind, (-1, *value.shape[1:])))
    return tuple(outputs)


def _shown(columns: Tensors) -> str:
    named = [f"{name} {datatype_of(values)}" for name, values in list(columns.items())[:8]]
    more = "" if len(columns) <= 8 else f" and {len(columns) - 8} more"
    return f"the columns {', '.join(named)}{more}"


def load_file(path: Path, options: dict[str, Any]) -> Any:
    """The estimator in a .skops file, or in a pickle that somebody vouched for.

    Raises: LoadFailed, MissingExtra, UntrustedArtifact.
    """
    if not path.is_file():
        raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
    # An estimator fitted on a DataFrame warns at each call that an array has no column names.
    warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
    if path.suffix == ".skops":
        return _load_skops(path, options)
    return pickles.load(path, options)


def foreign_types(path: Path) -> list[str]:
    """The types in a .skops file that are outside of the known families. Raises: LoadFailed, MissingExtra."""
    return sorted(name for name in _untrusted_types(path) if not name.startswith(FAMILIES))


def _untrusted_types(path: Path) -> list[str]:
    """The types in a .skops file that skops itself does not trust. Raises: as `foreign_types` does."""
    skops = skops_io()
    try:
        with zipfile.ZipFile(path) as stored:
            size = stored.getinfo("schema.json").file_size
        if size > MOST_SCHEMA_BYTES:
            raise LoadFailed(
                f"{path.name} has a description (schema.json) of {size:,} bytes, the limit is"
                f" {MOST_SCHEMA_BYTES:,}: no model needs so much"
            )
        return list(skops.get_untrusted_types(file=path))
    except LoadFailed:
        raise
    except Exception as error:
        raise LoadFailed(
            f"{path.name} is not a skops file, or not whole: {said(error, 300)}; save the model again"
        ) from error


def _load_skops(path: Path, options: dict[str, Any]) -> Any:
    found = _untrusted_types(path)
    foreign = {name for name in found if not name.startswith(FAMILIES)}
    unknown = sorted(foreign.difference(options.get("trusted_types", ())))
    if unknown:
        raise UntrustedArtifact(
            f"{path.name} builds objects of {', '.join(unknown)}: if you know where it comes from, "
            "register it with --trust"
        )
    try:
        return skops_io().load(path, trusted=found)
    except ImportError as error:
        raise LoadFailed(
            f"{path.name} needs a package that is not installed ({error}): install it for the node"
        ) from error
    except Exception as error:
        raise LoadFailed(f"skops cannot load {path.name}: {said(error)}") from error


def skops_io() -> Any:
    """The module skops.io. Raises: MissingExtra."""
    sys.meta_path.insert(0, _Hidden)
    try:
        import sklearn  # noqa: F401  skops imports it late, with words that name no remedy
        import skops.io
    except ImportError as error:
        raise MissingExtra(error.name or "skops", "sklearn") from None
    finally:
        sys.meta_path.remove(_Hidden)
    return skops.io


class _Hidden:
    """What skops need not import: to list scikit-learn's classes it imports all of its modules, and these
    import PyTorch, where that is installed: about as long as all the rest, for nothing that a model uses."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raises: ModuleNotFoundError for these; None, go on looking, for all others."""
        package, _, module = name.rpartition(".")
        if package == "sklearn.externals.array_api_compat" and module in ("torch", "cupy", "dask"):
            raise ModuleNotFoundError(name, name=name)


runtime = Sklearn()
