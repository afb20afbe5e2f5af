"""Owns scikit-learn models kept as they are: skops files of trusted types, pickles of a trusted digest."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra, ShapeMismatch, UntrustedArtifact
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec, Version, datatype_of

INPUT = "input"
LABEL = "label"
PROBABILITIES = "probabilities"
PREDICTION = "prediction"
"""What regressors and other models without classes answer, always [rows, targets]."""

FAMILIES = ("sklearn.", "numpy.", "scipy.", "_loss.", "xgboost.", "lightgbm.", "collections.")
"""Packages whose types a skops file may build without anybody vouching for them: constructing them runs
nothing that the file brings."""


class SklearnModel:
    """One float input: classifiers give `label` and `probabilities`, others `prediction`."""

    def __init__(self, estimator: Any, signature: Signature) -> None:
        self.estimator = estimator
        self._width = signature.inputs[0].shape[1]
        self._float = np.dtype(np.float32) if signature.inputs[0].datatype == "FP32" else np.dtype(np.float64)
        self._dtypes = {spec.name: DATATYPES[spec.datatype] for spec in signature.outputs}

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: ShapeMismatch; whatever the estimator raises."""
        rows = inputs[INPUT]
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise ShapeMismatch(
                f"input {INPUT!r}: got {list(rows.shape)}, the signature wants [-1, {self._width}]"
            )
        return {
            name: answer(self.estimator, name, rows).astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
            if outputs is None or name in outputs
        }

    def close(self) -> None:
        """Let the estimator go."""
        del self.estimator


class Sklearn:
    """The runtime `sklearn`: `entry` is a .skops file, or a pickle with SHA-256 `options["trusted_sha256"]`.

    `options["trusted_types"]`: types outside of the known families that the file may build.
    """

    name = "sklearn"

    def load(self, folder: Path, version: Version) -> SklearnModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        estimator = load_file(folder / version.entry, version.options)
        signature = version.signature if version.signature.inputs else signature_of(estimator, None, "FP32")
        return SklearnModel(estimator, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """From the estimator and one call with two rows.

        Raises: LoadFailed, MissingExtra, UntrustedArtifact.
        """
        estimator = load_file(folder / version.entry, version.options)
        rows = None if not example else next(iter(example.values()))
        datatype = version.options.get("input_datatype", "FP32")
        return signature_of(estimator, rows, datatype)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def answer(estimator: Any, name: str, rows: Array) -> Array:
    """One output of an estimator: [rows] labels, [rows, classes] probabilities, or [rows, targets]."""
    if name == PROBABILITIES:
        return np.asarray(estimator.predict_proba(rows))
    values = np.asarray(estimator.predict(rows))
    if name == LABEL:
        return values.astype(object) if values.dtype.kind in "SU" else values
    return values.reshape(len(values), -1)


def signature_of(estimator: Any, rows: Array | None, datatype: str) -> Signature:
    """What an estimator takes and gives; `rows` ([rows, columns], at least one) are tried, else zeros are.

    Raises: LoadFailed if it cannot predict from one float array.
    """
    width = getattr(estimator, "n_features_in_", None)
    if width is None:
        if rows is None or rows.ndim != 2:
            raise LoadFailed(
                f"{type(estimator).__name__} does not say how many columns it takes (n_features_in_): "
                "is it fitted? Otherwise give reference data"
            )
        width = rows.shape[1]
    sample = np.zeros((2, width)) if rows is None else rows[:2]
    sample = np.asarray(sample, DATATYPES[datatype])
    if datatype == "FP32":
        try:
            estimator.predict(sample)
        except (TypeError, ValueError):
            return signature_of(estimator, rows, "FP64")  # compiled for float64 only, as KMeans is
    wanted = [PREDICTION] if not hasattr(estimator, "classes_") else [LABEL]
    if wanted == [LABEL] and hasattr(estimator, "predict_proba"):
        wanted.append(PROBABILITIES)
    outputs = []
    for name in wanted:
        try:
            value = answer(estimator, name, sample)
        except Exception as error:
            raise LoadFailed(
                f"{type(estimator).__name__} cannot predict from floats [{len(sample)}, {width}]: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        kind = datatype if value.dtype.kind == "f" else datatype_of(value)
        outputs.append(TensorSpec(name, kind, (-1, *value.shape[1:])))
    return Signature((TensorSpec(INPUT, datatype, (-1, width)),), tuple(outputs), 0)


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
    return _load_pickle(path, options)


def foreign_types(path: Path) -> list[str]:
    """The types in a .skops file that are outside of the known families. Raises: LoadFailed, MissingExtra."""
    skops = skops_io()
    try:
        found = skops.get_untrusted_types(file=path)
    except Exception as error:
        raise LoadFailed(f"{path.name} is not a skops file: {type(error).__name__}: {error}") from error
    return sorted(name for name in found if not name.startswith(FAMILIES))


def sha256_of(path: Path) -> str:
    """The SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_skops(path: Path, options: dict[str, Any]) -> Any:
    foreign = foreign_types(path)
    unknown = sorted(set(foreign) - set(options.get("trusted_types", ())))
    if unknown:
        raise UntrustedArtifact(
            f"{path.name} builds objects of {', '.join(unknown)}: if you know where it comes from, "
            "register it with --trust"
        )
    skops = skops_io()
    try:
        return skops.load(path, trusted=skops.get_untrusted_types(file=path))
    except ImportError as error:
        raise LoadFailed(f"{path.name} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise LoadFailed(
            f"skops cannot load {path.name}: {type(error).__name__}: {str(error)[:500]}"
        ) from error


def refuse_pickle(path: Path) -> None:
    """Raises: UntrustedArtifact, always, with the remedy."""
    raise UntrustedArtifact(
        f"{path.name} is a pickle: loading it runs code that it brings, and nobody vouched for "
        f"SHA-256 {sha256_of(path)}. Save the model with skops, or register it with --trust if you know "
        "where it comes from"
    )


def _load_pickle(path: Path, options: dict[str, Any]) -> Any:
    if options.get("trusted_sha256") != sha256_of(path):
        refuse_pickle(path)
    try:
        if path.suffix == ".joblib":
            import joblib

            return joblib.load(path)
        import pickle

        with path.open("rb") as file:
            return pickle.load(file)
    except Exception as error:
        raise LoadFailed(
            f"{path.name} cannot be unpickled: {type(error).__name__}: {str(error)[:500]}"
        ) from error


def skops_io() -> Any:
    """The module skops.io. Raises: MissingExtra."""
    try:
        import sklearn  # noqa: F401  skops imports it late, with words that name no remedy
        import skops.io
    except ImportError as error:
        raise MissingExtra(error.name or "skops", "sklearn") from None
    return skops.io


runtime = Sklearn()
