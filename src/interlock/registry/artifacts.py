"""Owns the content-addressed cache: a folder named by its digest is whole, or it is not there."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from interlock.core.errors import ArtifactError, ConfigError, DigestMismatch
from interlock.core.model import artifact_path, digest_of

_PARTIAL = ".partial-"


def add(home: Path, source: Path) -> str:
    """Copy a folder into the cache; returns its digest. Adding the same bytes again costs the copy, and a
    look at those that are there.

    Raises: ArtifactError if it cannot be copied (no space, a symbolic link).
    """
    return add_made(home, lambda folder: _copy(source, folder))


def add_made(home: Path, make: Callable[[Path], None]) -> str:
    """Let `make` fill a new folder in the cache's file system, then put it in place; returns its digest.

    The folder appears under its digest by one rename, after its bytes are on the disk. Of several processes
    that add the same bytes, one wins and the others find it done.
    Raises: ArtifactError; whatever `make` raises.
    """
    cache = home / "artifacts"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cache))
    try:
        make(partial)
        digest = digest_of(partial)
        target = artifact_path(home, digest)
        if target.exists() and not _holds(target, digest):
            changed = cache / f"{_PARTIAL}changed-{os.getpid()}-{target.name}"
            target.rename(changed)
            _remove(changed)
        if not target.exists():
            _settle(partial)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            _sync(cache)
        return digest
    except ConfigError as error:
        raise ArtifactError(error.message) from None
    except (OSError, shutil.Error) as error:
        raise ArtifactError(f"artifact cache {cache}: {error}; nothing was added") from error
    finally:
        _remove(partial)


def verify(home: Path, digest: str) -> Path:
    """The cached folder, if its bytes still have that digest.

    Raises: DigestMismatch if it is missing or has changed.
    """
    folder = artifact_path(home, digest)
    if not folder.is_dir():
        raise DigestMismatch(f"artifact {digest} is not in {folder.parent}: register or resolve it again")
    found = digest_of(folder)
    if found != digest:
        raise DigestMismatch(
            f"artifact {folder} has digest {found}, registered was {digest}: remove the folder and "
            "resolve the version again"
        )
    return folder


def collect_garbage(home: Path, keep: Collection[str], *, min_age_s: float = 3600.0) -> list[str]:
    """Remove the cached folders whose digests are not in `keep`, and copies that were left half done.

    What is younger than `min_age_s` stays: a registration may be about to name it. Returns what was removed.
    """
    cache = home / "artifacts"
    kept = {digest.removeprefix("sha256:") for digest in keep}
    removed = []
    for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
        if folder.name in kept or time.time() - folder.stat().st_mtime < min_age_s:
            continue
        # Renamed first: a reader sees the whole folder or none of it.
        grave = folder.with_name(f"{_PARTIAL}gone-{os.getpid()}-{folder.name}")
        folder.rename(grave)
        _remove(grave)
        removed.append(folder.name)
    return removed


def size_bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _holds(folder: Path, digest: str) -> bool:
    try:
        return digest_of(folder) == digest
    except (ConfigError, OSError):
        return False


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True)


def _settle(folder: Path) -> None:
    """All bytes on the disk, files read-only, and nothing for other users."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(stat.S_IRWXU if path.is_dir() else stat.S_IRUSR)
        _sync(path)
    folder.chmod(stat.S_IRWXU)
    os.utime(folder)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
