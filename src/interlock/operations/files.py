"""Decides which files of a user are read at all: ordinary ones that have an end, a size and a name."""

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from interlock.core.errors import ArtifactError, InterlockError, UnknownFormat
from interlock.core.model import label_fault

LEFT_OUT = ("__pycache__", ".git")
"""Of a model's folder these are not taken."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: Path, kind: type[InterlockError], most_bytes: int | None = None) -> None:
    """Nothing, if `path` is an ordinary file, or a link to one, of 1 byte at least, that this user may read.

    Raises: `kind`.
    """
    if fault := label_fault(path.name):
        raise kind(f"the name of the file {path.name[:60]!a} {fault}: rename it")
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            where = os.readlink(path)
            raise kind(
                f"{path} is a symbolic link to {where!r}, which leads nowhere: {error.strerror}"
            ) from None
        raise kind(f"{path} cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        what = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise kind(f"{path} is {what}: want an ordinary file; save what it holds as one")
    if not status.st_size:
        raise kind(f"{path} is empty (0 bytes): write it again")
    if most_bytes is not None and status.st_size > most_bytes:
        raise kind(f"{path} has {status.st_size:,} bytes, the limit is {most_bytes:,}")
    if not os.access(path, os.R_OK):
        raise kind(f"{path} may not be read by this user: change its owner or its mode")


def check_folder(folder: Path) -> None:
    """Nothing, if all that a model's folder holds can be copied.

    Of symbolic links only those of a Hugging Face cache are, to files in the `blobs` of the same repository:
    any other could bring a secret of this user, such as a private key, into the registry.
    Raises: UnknownFormat for another link, a pipe, a device, or a file of a strange name.
    """
    blobs = _blobs(folder)

    def refuse(error: OSError) -> None:
        raise UnknownFormat(f"{error.filename} cannot be looked at: {error.strerror}") from None

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in (*folders, *names):
            path = Path(where, name)
            if fault := label_fault(name):
                raise UnknownFormat(
                    f"folder {folder.name}: the name of the file {name[:60]!a} {fault}: rename it"
                )
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                if blobs is not None and _is_in(path, blobs):
                    continue
                raise UnknownFormat(
                    f"folder {folder.name}: {path.relative_to(folder)} is a symbolic link to"
                    f" {os.readlink(path)!a}, which is no file of the blobs of the same Hugging Face"
                    " repository: put the file itself in its place"
                )
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = _KINDS.get(stat.S_IFMT(mode), "no file")
                raise UnknownFormat(
                    f"folder {folder.name}: {path.relative_to(folder)} is {what}: leave it out of the folder"
                )


def _blobs(folder: Path) -> Path | None:
    """Where the files of a folder in a Hugging Face cache lie: models--NAME/{blobs,snapshots/REVISION}."""
    for snapshots in folder.resolve().parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent / "blobs"
    return None


def _is_in(link: Path, blobs: Path) -> bool:
    """Whether a link ends at an ordinary file that lies right in a folder."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or to itself
        return False
    return target.parent == blobs and target.is_file()


def copy(source: Path, folder: Path, left_out: Sequence[str] = LEFT_OUT) -> None:
    """Copy a file, or what is in a folder, into an existing folder: of links, which `check_folder` has let
    through, what they lead to. `left_out`: patterns of names.

    Raises: ArtifactError where there is not enough room, or it cannot be read or written.
    """
    try:
        needed, free = _size_bytes(source, left_out), shutil.disk_usage(folder).free
        if needed > free:
            raise ArtifactError(
                f"{source.name} has {needed:,} bytes, and {folder.parent} has room for {free:,}: make room,"
                " or name another folder for temporary files in TMPDIR"
            )
        if source.is_dir():
            ignore = shutil.ignore_patterns(*left_out)
            shutil.copytree(source, folder, symlinks=False, dirs_exist_ok=True, ignore=ignore)
        else:
            shutil.copyfile(source, folder / source.name)
    except (OSError, shutil.Error) as error:
        raise ArtifactError(
            f"{source.name} cannot be copied to {folder.parent}: {error}; make room, or name another"
            " folder for temporary files in TMPDIR"
        ) from error


def _size_bytes(source: Path, left_out: Sequence[str]) -> int:
    if not source.is_dir():
        return source.stat().st_size
    total = 0
    ignore = shutil.ignore_patterns(*left_out)
    for where, folders, names in os.walk(source):
        ignored = ignore(where, [*folders, *names])
        folders[:] = [name for name in folders if name not in ignored]
        total += sum(Path(where, name).stat().st_size for name in names if name not in ignored)
    return total
