"""Decides which files and objects are boosted models, and how an object is written in its own format."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import LoadFailed

FORMATS = ".ubj, .json (XGBoost), .txt, .lgb (LightGBM), .cbm (CatBoost)"
_PACKAGES = ("xgboost", "lightgbm", "catboost")
_LOOKED_AT = 4096


class Boosted(msgspec.Struct, frozen=True):
    """`fill` writes the model's file into an empty folder and returns the options of its runtime."""

    runtime: str
    entry: str
    fill: Callable[[Path], dict[str, Any]]


def of_path(path: Path) -> Boosted | None:
    """What a file is by its suffix and first bytes; None if it is no boosted model."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    if path.suffix == ".ubj" or (path.suffix == ".json" and b'"learner"' in head):
        return Boosted("xgboost", f"model{path.suffix}", _copy(path, f"model{path.suffix}"))
    if path.suffix in (".txt", ".lgb") and head.startswith((b"tree\n", b"tree\r\n")):
        return Boosted("lightgbm", "model.txt", _copy(path, "model.txt"))
    if path.suffix in (".cbm", ".cb"):
        return Boosted("catboost", "model.cbm", _copy(path, "model.cbm"))
    return None


def of_object(model: object) -> Boosted | None:
    """What a model in memory is, by the package of its class or of one that it inherits from; none of them is
    imported for it."""
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    for package in _PACKAGES:
        if package in packages and callable(getattr(model, "predict", None)):
            return _WRITERS[package](model)
    return None


def _xgboost(model: Any) -> Boosted:
    def fill(folder: Path) -> dict[str, Any]:
        _save(model, lambda: model.save_model(folder / "model.ubj"))
        missing = getattr(model, "missing", None)
        is_set = missing is not None and not math.isnan(float(missing))
        return {"missing": float(missing)} if is_set and missing is not None else {}

    return Boosted("xgboost", "model.ubj", fill)


def _lightgbm(model: Any) -> Boosted:
    def fill(folder: Path) -> dict[str, Any]:
        _save(model, lambda: getattr(model, "booster_", model).save_model(str(folder / "model.txt")))
        # With an objective in Python the wrapper gives raw scores, and no labels.
        if hasattr(model, "classes_") and not callable(getattr(model, "objective", None)):
            return {"classes": model.classes_.tolist()}
        return {}

    return Boosted("lightgbm", "model.txt", fill)


def _catboost(model: Any) -> Boosted:
    def fill(folder: Path) -> dict[str, Any]:
        _save(model, lambda: model.save_model(str(folder / "model.cbm"), format="cbm"))
        return {"kind": type(model).__name__}

    return Boosted("catboost", "model.cbm", fill)


_WRITERS: dict[str, Callable[[Any], Boosted]] = {
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "catboost": _catboost,
}


def _save(model: object, write: Callable[[], object]) -> None:
    try:
        write()
    except Exception as error:  # each package has an error of its own for a model that is not fitted
        raise LoadFailed(
            f"this {type(model).__name__} cannot be saved: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _copy(path: Path, name: str) -> Callable[[Path], dict[str, Any]]:
    def fill(folder: Path) -> dict[str, Any]:
        shutil.copyfile(path, folder / name)
        return {}

    return fill
