"""Decides what a pickle may name while it is read. Only a process that may die reads one, of a digest that
somebody vouched for, and still nothing that runs commands, opens connections or evaluates code.

The look is part of the reading, because no other sees all: a scan of the file's opcodes stops at joblib's raw
arrays, and sees nothing of a compressed file.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import pickle
import types
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from interlock.core.errors import LoadFailed, MissingExtra, UntrustedArtifact, said

SUFFIXES = (".pkl", ".pickle", ".joblib")
DIGEST_OPTION = "trusted_sha256"

_COMPRESSED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", gzip.decompress),
    (b"BZh", bz2.decompress),
    (b"\xfd7zXZ", lzma.decompress),
    (b"\x5d\x00", lzma.decompress),
    (b"\x78", zlib.decompress),
)
"""What joblib compresses with, by the first bytes; a pickle that joblib writes begins with 0x80."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse(path: Path) -> None:
    """Raises: UntrustedArtifact, always, with the remedy."""
    raise UntrustedArtifact(
        f"{path.name} is a pickle: loading it runs code that it brings, and nobody vouched for "
        f"SHA-256 {sha256_of(path)}. Save the model with skops, or register it with --trust if you know "
        "where it comes from"
    )


def load(path: Path, options: Mapping[str, Any]) -> Any:
    """What a pickle or a joblib file holds, if its SHA-256 is `options["trusted_sha256"]`.

    Raises: UntrustedArtifact for another digest, and for whatever it names that a model has no need of;
    LoadFailed; MissingExtra.
    """
    if options.get(DIGEST_OPTION) != sha256_of(path):
        refuse(path)
    try:
        data = path.read_bytes()
        for start, decompress in _COMPRESSED:
            if path.suffix == ".joblib" and data.startswith(start):
                data = decompress(data)
                break
        return _reader(path, data).load()
    except (UntrustedArtifact, MissingExtra):
        raise
    except ModuleNotFoundError as error:
        raise LoadFailed(
            f"{path.name} needs the package {error.name!r}, which is not installed here: install it for the "
            "node, and register again"
        ) from error
    except AttributeError as error:
        hint = ""
        if "__main__" in str(error) or "check_process" in str(error):
            hint = ": it was made in a script; put the class in a module that the node can import"
        raise LoadFailed(f"{path.name} cannot be unpickled: {str(error)[:400]}{hint}") from error
    except Exception as error:
        raise LoadFailed(f"{path.name} cannot be unpickled, it may not be whole: {said(error)}") from error


def _reader(path: Path, data: bytes) -> Any:
    if path.suffix != ".joblib":
        return _Guarded(path.name, io.BytesIO(data))
    try:
        from joblib.numpy_pickle import NumpyUnpickler
    except ImportError:
        raise MissingExtra("joblib", "sklearn") from None

    class GuardedArrays(NumpyUnpickler):  # type: ignore[misc]
        """joblib's reader, which asks `find_class` for the objects inside of arrays, too."""

        def find_class(self, module: str, name: str) -> Any:
            return _guard(path.name, module, name, super().find_class)

    return GuardedArrays(path.name, io.BytesIO(data), ensure_native_byte_order=True)


class _Guarded(pickle.Unpickler):
    def __init__(self, file_name: str, data: io.BytesIO) -> None:
        super().__init__(data)
        self._file_name = file_name

    def find_class(self, module: str, name: str) -> Any:
        return _guard(self._file_name, module, name, super().find_class)


def _guard(file_name: str, module: str, name: str, find: Callable[[str, str], Any]) -> Any:
    _refuse_if_harmful(file_name, module, name)
    found = find(module, name)
    if isinstance(found, types.ModuleType):
        raise UntrustedArtifact(f"{file_name} names the module {found.__name__}, which no model has need of")
    # A harmless module may hold what another defines: `name` may be a path, and lead out of it.
    real = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if all(isinstance(part, str) for part in real) and real != (module, name):
        _refuse_if_harmful(file_name, str(real[0]), str(real[1]))
    return found


def _refuse_if_harmful(file_name: str, module: str, name: str) -> None:
    if _is_harmful(module, name):
        raise UntrustedArtifact(
            f"{file_name} names {module}.{name}, which can run anything: it was not loaded, and --trust does "
            "not change that. A model of plain functions and classes can be registered as Python code"
        )


@lru_cache(maxsize=4096)
def _is_harmful(module: str, name: str) -> bool:
    """By picklescan's list; it is asked through a pickle that names this one thing."""
    if "\n" in module + name or module.startswith("joblib.numpy_pickle_compat"):
        return True
    if name in ("load", "loads", "read_pickle"):
        return True  # they read another pickle, which nobody would look at
    from picklescan.scanner import scan_pickle_bytes  # 0.1 s, for those alone that read a pickle

    one = b"c" + module.encode() + b"\n" + name.encode() + b"\n."
    return bool(scan_pickle_bytes(io.BytesIO(one), "one").issues_count)
