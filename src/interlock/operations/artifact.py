"""Decides what a registration was given: which runtime reads it, and which files make up the artifact."""

import ast
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import ArtifactError, LoadFailed, UnknownFormat, UntrustedArtifact
from interlock.runtime import huggingface_files, sklearn, torch_files

FORMATS = (
    ".onnx, .skops, .pkl, .pickle, .joblib, .py, .pt2, .pt, .pth, .keras, a folder with one .onnx or .py "
    "file, a SavedModel or Hugging Face folder, a fitted estimator or an nn.Module"
)
_PICKLES = (".pkl", ".pickle", ".joblib")


class Given(msgspec.Struct, frozen=True):
    """What is to be registered. `estimator` is set for scikit-learn models, which may still be converted;
    for the others `fill` copies the files into an empty folder. `module` is set for PyTorch modules,
    which are exported with reference rows, and programs (or the file of one), which may be converted.
    `options` are the runtime's."""

    runtime: str
    entry: str
    estimator: Any = None
    fill: Callable[[Path], object] | None = None
    module: Any = None
    options: dict[str, Any] = {}


def recognise(artifact: object, *, trust: bool) -> Given:
    """Look at a path or an object.

    `trust`: load it although that runs code it brings (pickle), or builds types of unknown packages (skops).
    Raises: UnknownFormat, UntrustedArtifact, LoadFailed, MissingExtra.
    """
    if isinstance(artifact, str | Path):
        return _path(str(artifact), trust)
    if callable(getattr(artifact, "predict", None)) and callable(getattr(artifact, "get_params", None)):
        return Given("sklearn", "model.skops", estimator=artifact)
    torch = sys.modules.get("torch")  # who has such an object has imported it
    if torch is not None and isinstance(artifact, torch.jit.ScriptModule):
        return Given("torch", "model.pt", fill=lambda folder: torch.jit.save(artifact, folder / "model.pt"))
    if torch is not None and isinstance(artifact, (torch.nn.Module, torch.export.ExportedProgram)):
        return Given("torch", "model.pt2", module=artifact)
    if type(artifact).__name__ == "ModelProto":
        data = artifact.SerializeToString()  # type: ignore[attr-defined]  # onnx need not be installed to look
        return Given("onnx", "model.onnx", fill=lambda folder: (folder / "model.onnx").write_bytes(data))
    raise UnknownFormat(f"cannot register an object of type {type(artifact).__name__}: want {FORMATS}")


def save_estimator(estimator: Any, folder: Path) -> dict[str, Any]:
    """Write `model.skops`; returns the runtime's options: the types that loading it builds.

    Raises: ArtifactError if skops cannot hold it; MissingExtra.
    """
    skops = sklearn.skops_io()
    path = folder / "model.skops"
    try:
        skops.dump(estimator, path)
        types = sorted(skops.get_untrusted_types(file=path))
    except Exception as error:
        raise ArtifactError(
            f"skops cannot hold this {type(estimator).__name__}: {type(error).__name__}: {str(error)[:300]}; "
            "convert it to ONNX, or wrap it in a Python class with predict(inputs)"
        ) from error
    return {
        "all_types": types,
        "trusted_types": [name for name in types if not name.startswith(sklearn.FAMILIES)],
    }


def _path(text: str, trust: bool) -> Given:
    class_name = ""
    if not Path(text).exists() and ":" in text:
        text, _, class_name = text.rpartition(":")
    path = Path(text)
    if not path.exists():
        raise UnknownFormat(f"{text} does not exist: want {FORMATS}")
    if path.is_dir():
        return _folder(path, trust)
    if path.suffix == ".onnx":
        return Given("onnx", path.name, fill=lambda folder: shutil.copy(path, folder / path.name))
    if path.suffix == ".py":
        entry = f"{path.name}:{class_name or _only_class(path)}"
        return Given("python", entry, fill=lambda folder: shutil.copy(path, folder / path.name))
    if path.suffix == ".skops" or path.suffix in _PICKLES:
        return Given("sklearn", "model.skops", estimator=_load(path, trust))
    if path.suffix in torch_files.SUFFIXES:
        return _torch(path, trust)
    if path.suffix == ".keras":
        return Given(
            "keras",
            path.name,
            fill=lambda folder: shutil.copy(path, folder / path.name),
            options=_vouched(path, trust),
        )
    raise UnknownFormat(
        f"{path.name}: no runtime reads {path.suffix or 'a file without a suffix'}: want {FORMATS}"
    )


def _torch(path: Path, trust: bool) -> Given:
    options: dict[str, Any] = {}
    try:
        kind = torch_files.checked_kind(path, options)
    except UntrustedArtifact:
        if not trust:
            raise
        kind, options = torch_files.PICKLE, _vouched(path, trust)
    return Given(
        "torch",
        path.name,
        fill=lambda folder: shutil.copy(path, folder / path.name),
        module=path if kind == torch_files.PROGRAM else None,
        options=options,
    )


def _vouched(path: Path, trust: bool) -> dict[str, Any]:
    return {"trusted_sha256": torch_files.sha256_of(path)} if trust else {}


def _folder(path: Path, trust: bool) -> Given:
    if (path / "saved_model.pb").is_file():
        options = _vouched(path / "saved_model.pb", trust)
        return Given("tensorflow", "", fill=lambda folder: _copy(path, folder), options=options)
    if (path / "config.json").is_file() and (path / "tokenizer.json").is_file():
        options = {"trusted_code": True} if trust else {}
        return Given(
            "huggingface", "", fill=lambda folder: huggingface_files.copy(path, folder), options=options
        )
    graphs, sources = sorted(path.glob("*.onnx")), sorted(path.glob("*.py"))
    if len(graphs) == 1:
        return Given("onnx", graphs[0].name, fill=lambda folder: _copy(path, folder))
    models = [source for source in sources if _classes(source)]
    if not graphs and len(models) == 1:
        entry = f"{models[0].name}:{_only_class(models[0])}"
        return Given("python", entry, fill=lambda folder: _copy(path, folder))
    raise UnknownFormat(
        f"folder {path.name} has {len(graphs)} .onnx files and {len(models)} .py files with a class that has "
        "predict(inputs) or stream(inputs): want exactly one"
    )


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(
        source,
        folder,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", ".git"),
    )


def _load(path: Path, trust: bool) -> Any:
    options: dict[str, Any] = {}
    if trust and path.suffix == ".skops":
        options = {"trusted_types": sklearn.foreign_types(path)}
    elif trust:
        options = {"trusted_sha256": sklearn.sha256_of(path)}
    estimator = sklearn.load_file(path, options)
    if not callable(getattr(estimator, "predict", None)):
        raise LoadFailed(f"{path.name} holds a {type(estimator).__name__}, which has no predict method")
    return estimator


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
    except (SyntaxError, ValueError) as error:
        raise LoadFailed(f"{path.name} is not Python: {error}") from None
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(
            isinstance(item, ast.FunctionDef) and item.name in ("predict", "stream") for item in node.body
        )
    ]
