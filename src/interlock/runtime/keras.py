"""Owns Keras 3 models in .keras files, on TensorFlow where that is installed, else on PyTorch."""

import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra, UntrustedArtifact
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.runtime.answers import named
from interlock.runtime.framework_tensors import held, spec_of
from interlock.runtime.pickles import sha256_of
from interlock.runtime.tensorflow import tensorflow_package


class KerasModel:
    """Inputs in the order in which the model's own structure has them."""

    def __init__(self, model: Any, keras: Any, signature: Signature) -> None:
        self._model = model
        self._keras = keras
        self._specs = signature.inputs
        self._structure = _ends(model)[0]
        self._mode = _without_gradients(keras)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: InputMismatch, ShapeMismatch; whatever the model raises."""
        given = [held(spec, inputs) for spec in self._specs]
        packed = self._keras.tree.pack_sequence_as(self._structure, given)
        with self._mode():
            answers = named(self._model(packed, training=False))
            return {
                name: self._array(answer)
                for name, answer in answers.items()
                if outputs is None or name in outputs
            }

    def close(self) -> None:
        """Let the model go."""
        del self._model

    def _array(self, answer: Any) -> Array:
        array: Array = np.asarray(self._keras.ops.convert_to_numpy(answer))
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


class Keras:
    """The runtime `keras`: `entry` is a .keras file.

    `options["trusted_sha256"]`: the SHA-256 of a file that brings Python code, if somebody vouched for it.
    """

    name = "keras"

    def load(self, folder: Path, version: Version) -> KerasModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        model, keras = _open(folder / version.entry, version.options)
        signature = version.signature if version.signature.inputs else _signature(model, keras)
        return KerasModel(model, keras, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the model says of itself. Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        return _signature(*_open(folder / version.entry, version.options))

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def _open(path: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    keras = keras_package()
    if not path.is_file():
        raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
    trusted = "trusted_sha256" in options and options["trusted_sha256"] == sha256_of(path)
    try:
        return keras.models.load_model(path, compile=False, safe_mode=not trusted), keras
    except Exception as error:  # Keras, h5py and zipfile share no root
        words = f"{type(error).__name__}: {str(error)[:600]}"
        if "safe_mode" in str(error) or "unsafe_deserialization" in str(error):
            raise UntrustedArtifact(
                f"{path.name} brings Python code (a Lambda layer), and nobody vouched for SHA-256 "
                f"{sha256_of(path)}: write the layer with keras.ops or as a class, or register it with "
                f"--trust if you know where it comes from; Keras says: {words[:300]}"
            ) from error
        raise LoadFailed(f"Keras cannot load {path.name}: {words}") from error


def keras_package() -> Any:
    """Keras with the backend there is; nothing is written to the home folder. Raises: MissingExtra."""
    if "keras" not in sys.modules:
        backend = next((n for n in ("tensorflow", "torch") if importlib.util.find_spec(n) is not None), None)
        if backend is None or importlib.util.find_spec("keras") is None:
            raise MissingExtra("keras" if backend else "a backend for Keras", "keras")
        # This process is the version's own. A home that cannot be made is one that nothing is read from.
        os.environ["KERAS_BACKEND"], os.environ["KERAS_HOME"] = backend, f"{os.devnull}/keras"
        if backend == "torch":
            import torch

            torch.set_num_threads(1)
        else:
            tensorflow_package()
    try:
        import keras
    except ImportError as error:
        raise MissingExtra(error.name or "keras", "keras") from None
    return keras


def _without_gradients(keras: Any) -> "type[AbstractContextManager[Any]]":
    if keras.backend.backend() == "torch":
        import torch

        mode: type[AbstractContextManager[Any]] = torch.inference_mode
        return mode
    return nullcontext


def _ends(model: Any) -> tuple[Any, Any]:
    """The model's symbolic inputs and outputs, as it nests them. Raises: LoadFailed if it has none."""
    try:
        if hasattr(model, "input"):
            return model.input, model.output
        (taken,), (given,) = model.inputs, model.outputs  # a Sequential has one of each
        return taken, given
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadFailed(
            f"this {type(model).__name__} does not say what it takes: build it from keras.Input, or save it "
            "with model.export(folder), and register that folder"
        ) from error


def _signature(model: Any, keras: Any) -> Signature:
    structure, answered = _ends(model)
    answers = named(answered)
    if isinstance(structure, dict):
        taken = dict(sorted(structure.items()))  # as Keras flattens dicts
    else:
        taken = {tensor.name: tensor for tensor in keras.tree.flatten(structure)}
    inputs = tuple(spec_of(name, value) for name, value in taken.items())
    outputs = tuple(spec_of(name, value) for name, value in answers.items())
    rows = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(inputs, outputs, 0 if rows else None)


runtime = Keras()
