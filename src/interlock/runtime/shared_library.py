"""Decides where a framework's shared library is: inside its installed package, which is not imported."""

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlock.core.errors import LoadFailed, MissingExtra

_SUFFIX = "dylib" if sys.platform == "darwin" else "so"


def open_library(package: str, stem: str, extra: str) -> ctypes.CDLL:
    """`<package>/lib/<stem>.so`, loaded. Calls of its functions release the GIL.

    Raises: MissingExtra without the package; LoadFailed where its library is not, or does not load.
    """
    # A package that was imported already is not looked for again; one that is blocked is None in there.
    found = importlib.util.find_spec(package) if sys.modules.get(package, True) is not None else None
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(package, extra)
    path = Path(next(iter(found.submodule_search_locations))) / "lib" / f"{stem}.{_SUFFIX}"
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LoadFailed(f"the library of {package} does not load: {error}") from error


@contextmanager
def one_thread(library: ctypes.CDLL) -> Iterator[None]:
    """In it, what this thread calls of an OpenMP library starts no other threads, which would stay."""
    try:
        most, limit = library.omp_get_max_threads, library.omp_set_num_threads
    except AttributeError:  # built without OpenMP
        yield
        return
    before = most()
    limit(1)
    try:
        yield
    finally:
        limit(before)
