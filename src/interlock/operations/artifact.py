"""Decides what a registration was given: which runtime reads it, and which files make up the artifact."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import ArtifactError, LoadFailed, UnknownFormat, said
from interlock.operations.files import check_file, check_folder, copy
from interlock.runtime import pickles, sklearn

MOST_SOURCE_BYTES = 16 * 1024**2
"""Of one file of Python, which is read here to find its classes."""

_SUFFIXES = (".onnx", ".skops", ".py", *pickles.SUFFIXES)
FORMATS = (
    ".onnx, .skops, .pkl, .pickle, .joblib, .py, a folder with one .onnx or .py file, or a fitted estimator"
)


class Given(msgspec.Struct, frozen=True):
    """What is to be registered: `fill` writes its files into an empty folder, and returns the options that
    their runtime needs to load them."""

    runtime: str
    entry: str
    fill: Callable[[Path], dict[str, Any] | None]


def recognise(artifact: object, *, trust: bool) -> Given:
    """Look at a path or an object.

    `trust`: load it although that runs code it brings (pickle), or builds types of unknown packages (skops).
    Raises: UnknownFormat, UntrustedArtifact, LoadFailed, MissingExtra.
    """
    if isinstance(artifact, str | Path):
        return _path(str(artifact), trust)
    if callable(getattr(artifact, "predict", None)) and callable(getattr(artifact, "get_params", None)):
        return Given("sklearn", "model.skops", lambda folder: save_estimator(artifact, folder))
    if type(artifact).__name__ == "ModelProto":
        data = artifact.SerializeToString()  # type: ignore[attr-defined]  # onnx need not be installed to look
        return Given("onnx", "model.onnx", lambda folder: _write(folder / "model.onnx", data))
    raise UnknownFormat(f"cannot register an object of type {type(artifact).__name__}: want {FORMATS}")


def save_estimator(estimator: Any, folder: Path) -> dict[str, Any]:
    """Write `model.skops`; returns the options with which it loads: who has the object vouches for its types.

    Raises: ArtifactError if skops cannot hold it; MissingExtra.
    """
    skops = sklearn.skops_io()
    path = folder / "model.skops"
    try:
        skops.dump(estimator, path)
        return {"trusted_types": sklearn.foreign_types(path)}
    except Exception as error:
        raise ArtifactError(
            f"skops cannot hold this {type(estimator).__name__}: {said(error, 300)}; "
            "save it with joblib and register that file with trust, convert it to ONNX, or wrap it in a "
            "Python class with predict(inputs)"
        ) from error


def _path(text: str, trust: bool) -> Given:
    class_name = ""
    if not os.path.lexists(text) and ":" in text:
        text, _, class_name = text.rpartition(":")
    path = Path(text)
    if not os.path.lexists(path):
        raise UnknownFormat(f"{text!a} does not exist: want {FORMATS}")
    if path.is_dir():
        return _folder(path)
    if path.suffix in _SUFFIXES:
        check_file(path, LoadFailed, MOST_SOURCE_BYTES if path.suffix == ".py" else None)
    if path.suffix == ".onnx":
        return Given("onnx", path.name, lambda folder: copy(path, folder))
    if path.suffix == ".py":
        entry = f"{path.name}:{class_name or _only_class(path)}"
        return Given("python", entry, lambda folder: copy(path, folder))
    if path.suffix == ".skops" or path.suffix in pickles.SUFFIXES:
        if path.suffix != ".skops" and not trust:
            pickles.refuse(path)
        return Given("sklearn", path.name, lambda folder: _copy_model(path, folder, trust))
    raise UnknownFormat(
        f"{path.name}: no runtime reads {path.suffix or 'a file without a suffix'}: want {FORMATS}"
    )


def _folder(path: Path) -> Given:
    check_folder(path)
    graphs, sources = sorted(path.glob("*.onnx")), sorted(path.glob("*.py"))
    if len(graphs) == 1:
        return Given("onnx", graphs[0].name, lambda folder: copy(path, folder))
    models = [source for source in sources if _classes(source)]
    if not graphs and len(models) == 1:
        entry = f"{models[0].name}:{_only_class(models[0])}"
        return Given("python", entry, lambda folder: copy(path, folder))
    raise UnknownFormat(
        f"folder {path.name} has {len(graphs)} .onnx files and {len(models)} .py files with a class that has "
        "predict(inputs) or stream(inputs): want exactly one"
    )


def _copy_model(path: Path, folder: Path, trust: bool) -> dict[str, Any]:
    """Copy a .skops file or a pickle; its options say what was vouched for, by the digest of the copy."""
    copy(path, folder)
    copied = folder / path.name
    if path.suffix != ".skops":
        return {pickles.DIGEST_OPTION: pickles.sha256_of(copied)}
    return {"trusted_types": sklearn.foreign_types(copied)} if trust else {}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _only_class(path: Path) -> str:
    names = _classes(path)
    if len(names) != 1:
        raise UnknownFormat(
            f"{path.name} has {len(names)} classes with a predict or stream method {names}: name one,"
            f" {path.name}:Class"
        )
    return names[0]


def _classes(path: Path) -> list[str]:
    """Found by reading, not by running."""
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise LoadFailed(f"{path.name} is not Python: {error or type(error).__name__}: mend it") from None
    except OSError as error:
        raise LoadFailed(f"{path.name} cannot be read: {error.strerror}") from None
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(
            isinstance(item, ast.FunctionDef) and item.name in ("predict", "stream") for item in node.body
        )
    ]
