"""Reads what DVC's own files say of a dataset; nothing of DVC's is imported or changed.

The files: https://dvc.org/doc/user-guide/project-structure/dvc-files, and dvc.yaml and dvc.lock beside it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interlock.core.provenance import Tracked
from interlock.operations.revision import is_changed, revision

_LARGEST_BYTES = 10 << 20
"""A larger file of DVC's is left unread."""


def tracked(path: Path) -> Tracked | None:
    """What DVC records of a file: by FILE.dvc beside it or beside a folder above it, or by the output of a
    stage in a dvc.lock or dvc.yaml above it. None where none does, or none can be read."""
    path = path.absolute()
    for folder in (path, *path.parents):
        beside = folder.parent / f"{folder.name}.dvc"
        if folder.name and beside.is_file():
            found = _of_outs(path, beside, _outs_of_dvc_file(beside))
            if found is not None:
                return found
        if folder != path:
            for name, outs in (("dvc.lock", _outs_of_lock), ("dvc.yaml", _outs_of_yaml)):
                if (folder / name).is_file():
                    found = _of_outs(path, folder / name, outs(folder / name))
                    if found is not None:
                        return found
            if (folder / ".dvc").is_dir() or (folder / ".git").exists():
                return None  # the root of the project: nothing above it concerns the file
    return None


def _of_outs(path: Path, file: Path, outs: Iterator[tuple[Path, dict[str, Any]]]) -> Tracked | None:
    for place, out in outs:
        # As the names are written: what DVC tracks may be a link into its cache.
        if place != path and place not in path.parents:
            continue
        md5 = out.get("md5") or out.get("checksum")
        text = None if md5 is None else str(md5)
        matches = None
        if place == path and text is not None and not text.endswith(".dir"):
            legacy = "hash" not in out  # before DVC 3: line ends of texts as on Unix
            matches = _md5(path) == text or (legacy and _md5(path, unix=True) == text)
        code = revision(file.parent)
        return Tracked(
            file=str(file),
            path=str(place),
            md5=text,
            matches=matches,
            commit=None if code is None else code.commit,
            dirty=None if code is None else is_changed(file),
        )
    return None


def _outs_of_dvc_file(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    read = _read(file)
    base = file.parent / str(read.get("wdir") or ".")
    yield from _places(base, read.get("outs"))


def _outs_of_lock(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    folders = _folders(_read(file.with_name("dvc.yaml")))
    for name, stage in _mapping(_read(file).get("stages")).items():
        # A stage of a foreach or matrix is called NAME@ITEM.
        folder = folders.get(str(name)) or folders.get(str(name).partition("@")[0]) or "."
        yield from _places(file.parent / folder, _mapping(stage).get("outs"))


def _outs_of_yaml(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    read = _read(file)
    folders = _folders(read)
    for name, stage in _mapping(read.get("stages")).items():
        yield from _places(file.parent / folders.get(str(name), "."), _mapping(stage).get("outs"))


def _folders(read: dict[str, Any]) -> dict[str, str]:
    stages = _mapping(read.get("stages"))
    return {str(name): str(_mapping(stage).get("wdir") or ".") for name, stage in stages.items()}


def _places(base: Path, outs: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    for out in outs if isinstance(outs, list) else ():
        if isinstance(out, str):  # dvc.yaml: the name alone, or the name with options
            yield _joined(base, out), {}
        elif isinstance(out, dict) and "path" in out:
            yield _joined(base, str(out["path"])), out
        elif isinstance(out, dict):
            yield from ((_joined(base, str(name)), {}) for name in out)


def _joined(base: Path, name: str) -> Path:
    """Without "..", by the names alone."""
    return Path(os.path.normpath(base / name))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(file: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # MLflow's own dependency, and only where data are tracked

    try:
        if file.stat().st_size > _LARGEST_BYTES:
            return {}
        return _mapping(yaml.safe_load(file.read_bytes()))
    except (OSError, yaml.YAMLError, ValueError):
        return {}


def _md5(path: Path, *, unix: bool = False) -> str:
    with path.open("rb") as file:
        if not unix:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        digest = hashlib.md5(usedforsecurity=False)
        for line in file:
            digest.update(line.replace(b"\r\n", b"\n"))
        return digest.hexdigest()
