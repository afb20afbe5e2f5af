"""Owns a booster as a loaded model: what the runtimes of XGBoost and LightGBM do alike."""

from contextlib import closing
from pathlib import Path
from typing import Protocol

from interlock.core.model import Array, Signature, Tensors, Version
from interlock.runtime.boosted import Intake, Outlet, Shape, signature_of
from interlock.runtime.by_rows import with_onnx
from interlock.runtime.protocol import Loaded


class Booster(Protocol):
    """A model in the memory of its framework, which `close` frees."""

    shape: Shape

    def predict(self, rows: Array) -> Array:
        """Raw answers [rows, groups] of a matrix [rows, width]. Raises: PredictFailed."""
        ...

    def close(self) -> None: ...


class BoostedModel:
    """A booster with the signature's inputs and outputs. As many threads may call `predict` as the booster
    lets at once."""

    def __init__(self, booster: Booster, signature: Signature) -> None:
        self._booster = booster
        self._intake = Intake(booster.shape, signature)
        self._outlet = Outlet(booster.shape, signature)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: ShapeMismatch, PredictFailed."""
        return self._outlet.answer(self._booster.predict(self._intake.matrix(inputs)), outputs)

    def close(self) -> None:
        """Free the booster."""
        self._booster.close()


def load(booster: Booster, folder: Path, version: Version) -> Loaded:
    """The booster, with ONNX beside it where the version has both. Raises: LoadFailed; it is freed then."""
    try:
        signature = version.signature
        if not signature.inputs:
            signature = signature_of(booster.shape, version.options)
        return with_onnx(BoostedModel(booster, signature), folder, version, signature)
    except BaseException:
        booster.close()
        raise


def inspect(booster: Booster, version: Version) -> Signature:
    """What the file says of itself; the booster is freed. Raises: LoadFailed."""
    with closing(booster):
        return signature_of(booster.shape, version.options)
