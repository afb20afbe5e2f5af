"""Decides in which form a model is kept: as it came, or converted to what answers the same, faster."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from interlock.core.model import Tensors, Version

PREPARERS = {
    "sklearn": "interlock.runtime.sklearn_prepare",
    "torch": "interlock.runtime.torch_prepare",
    "xgboost": "interlock.runtime.boosted_prepare",
    "lightgbm": "interlock.runtime.boosted_prepare",
    "catboost": "interlock.runtime.catboost_prepare",
}
"""Runtime -> the module of this folder that prepares what it would load; others keep what they are given."""


Begin = Callable[[], str]
"""Is called before a conversion, when the model has been loaded: why there must be none, or ""."""


def allowed() -> str:
    """The `Begin` that lets any conversion begin."""
    return ""


class ConversionReport(msgspec.Struct, frozen=True):
    """Whether a model runs as ONNX, and why. `difference` is the largest |difference| seen over `rows` rows
    (None: not compared); `kept_s`, `onnx_s` are median seconds a call by rows."""

    converted: bool
    reason: str
    rows: int = 0
    difference: float | None = None
    kept_s: dict[int, float] = {}
    onnx_s: dict[int, float] = {}


class Prepared(msgspec.Struct, frozen=True):
    """What becomes the version's artifact; its files are in the folder that was to be filled."""

    runtime: str
    entry: str
    options: dict[str, Any]
    conversion: ConversionReport | None = None


class Preparer(Protocol):
    """The module of PREPARERS."""

    def prepare(
        self, folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
    ) -> Prepared:
        """Fill the empty folder `out` from `folder`, whose `draft.entry` is the model as it came.

        `data`: reference rows by column or input. It runs in a process that may die: what it loads may run
        code. What ends it after `begin` was called is laid to the conversion, not to the model.
        Raises: LoadFailed, CheckFailed, MissingExtra, UntrustedArtifact.
        """
        ...


def prepare(
    folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
) -> Prepared:
    """Fill `out`, in whichever way the runtime of the draft has. Raises: as `Preparer.prepare` does."""
    name = PREPARERS.get(draft.runtime)
    if name is None:
        shutil.copytree(folder, out, dirs_exist_ok=True, symlinks=True)
        return Prepared(draft.runtime, draft.entry, draft.options)
    module: Preparer = importlib.import_module(name)
    return module.prepare(folder, draft, data, out, begin)
