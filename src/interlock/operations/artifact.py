"""Decides what a registration was given: which runtime reads it, and which files make up the artifact."""

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import (
    ArtifactError,
    ConfigError,
    LoadFailed,
    UnknownFormat,
    UntrustedArtifact,
    said,
)
from interlock.core.model import Tensors
from interlock.operations import artifact_boosters
from interlock.operations.files import check_file, check_folder, copy
from interlock.runtime import huggingface_files, pickles, sklearn, torch_files

MOST_SOURCE_BYTES = 16 * 1024**2
"""Of one file of Python, which is read here to find its classes."""

FORMATS = (
    f".onnx, .skops, .pkl, .pickle, .joblib, {artifact_boosters.FORMATS}, .py, .pt2, .pt, .pth, .keras, "
    "a folder with one .onnx or .py file, a SavedModel or Hugging Face folder, a fitted model or an nn.Module"
)


class Given(msgspec.Struct, frozen=True):
    """What is to be registered: `fill` writes its files into an empty folder, and returns the options that
    their runtime needs to load them."""

    runtime: str
    entry: str
    fill: Callable[[Path], dict[str, Any] | None]


def recognise(artifact: object, *, trust: bool, rows: Tensors | None = None) -> Given:
    """Look at a path or an object; a PyTorch module is exported with `rows`, reference data.

    `trust`: load it although that runs code it brings (pickle), or builds types of unknown packages (skops).
    Raises: UnknownFormat, UntrustedArtifact, LoadFailed, MissingExtra.
    """
    if isinstance(artifact, str | Path):
        return _path(str(artifact), trust)
    boosted = artifact_boosters.of_object(artifact)
    if boosted is not None:
        return Given(boosted.runtime, boosted.entry, boosted.fill)
    if callable(getattr(artifact, "predict", None)) and callable(getattr(artifact, "get_params", None)):
        return Given("sklearn", "model.skops", lambda folder: save_estimator(artifact, folder))
    torch = sys.modules.get("torch")  # who has such an object has imported it
    if torch is not None and isinstance(artifact, torch.jit.ScriptModule):
        return Given("torch", "model.pt", lambda folder: torch.jit.save(artifact, folder / "model.pt"))
    if torch is not None and isinstance(artifact, (torch.nn.Module, torch.export.ExportedProgram)):
        return Given("torch", "model.pt2", lambda folder: _export(artifact, rows, folder / "model.pt2"))
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
        return _folder(path, trust)
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
    if path.suffix in torch_files.SUFFIXES:
        return Given("torch", path.name, lambda folder: _copy_torch(path, folder, trust))
    if path.suffix == ".keras":
        return Given("keras", path.name, lambda folder: _copy_vouched(path, folder, trust))
    boosted = artifact_boosters.of_path(path)
    if boosted is not None:
        return Given(boosted.runtime, boosted.entry, boosted.fill)
    raise UnknownFormat(
        f"{path.name}: no runtime reads {path.suffix or 'a file without a suffix'}: want {FORMATS}"
    )


def _folder(path: Path, trust: bool) -> Given:
    check_folder(path)
    if (path / "saved_model.pb").is_file():
        return Given("tensorflow", "", lambda folder: _copy_vouched(path, folder, trust, "saved_model.pb"))
    if (path / "config.json").is_file() and (path / "tokenizer.json").is_file():
        return Given("huggingface", "", lambda folder: _copy_huggingface(path, folder, trust))
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


def _export(module: Any, rows: Tensors | None, path: Path) -> None:
    """Write a module, or a program that was exported already, as a program's file."""
    from interlock.runtime import torch_program

    if isinstance(module, sys.modules["torch"].nn.Module):
        if rows is None:
            raise ConfigError(
                "a PyTorch module does not say what it takes: give reference rows, "
                "interlock.register(name, module, X), with X an array or a dict of one array an argument"
            )
        module = torch_program.export(module, rows)
    path.write_bytes(torch_program.saved(module))


def _copy_torch(path: Path, folder: Path, trust: bool) -> dict[str, Any]:
    copy(path, folder)
    try:
        torch_files.checked_kind(folder / path.name, {})
    except UntrustedArtifact:
        if not trust:
            raise
        return {pickles.DIGEST_OPTION: pickles.sha256_of(folder / path.name)}
    return {}


def _copy_vouched(path: Path, folder: Path, trust: bool, inner: str = "") -> dict[str, Any]:
    """Copy a file or a folder; the options vouch for that file, or for `inner`, if `trust`."""
    copy(path, folder)
    return {pickles.DIGEST_OPTION: pickles.sha256_of(folder / (inner or path.name))} if trust else {}


def _copy_huggingface(path: Path, folder: Path, trust: bool) -> dict[str, Any]:
    copy(path, folder, huggingface_files.LEFT_OUT)
    return {"trusted_code": True} if trust else {}


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
