"""Decides which files of a user are read at all: ordinary ones that have an end, a size and a name."""

import os
import shutil
import stat
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

    Raises: UnknownFormat for a symbolic link, a pipe, a device, or a file of a strange name.
    """

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
                raise UnknownFormat(
                    f"folder {folder.name}: {path.relative_to(folder)} is a symbolic link, which no digest"
                    " covers: put the file itself in its place"
                )
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = _KINDS.get(stat.S_IFMT(mode), "no file")
                raise UnknownFormat(
                    f"folder {folder.name}: {path.relative_to(folder)} is {what}: leave it out of the folder"
                )


def copy(source: Path, folder: Path) -> None:
    """Copy a file, or what is in a folder, into an existing folder.

    Raises: ArtifactError where there is not enough room, or it cannot be read or written.
    """
    try:
        needed, free = _size_bytes(source), shutil.disk_usage(folder).free
        if needed > free:
            raise ArtifactError(
                f"{source.name} has {needed:,} bytes, and {folder.parent} has room for {free:,}: make room,"
                " or name another folder for temporary files in TMPDIR"
            )
        if source.is_dir():
            ignore = shutil.ignore_patterns(*LEFT_OUT)
            shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            shutil.copyfile(source, folder / source.name)
    except (OSError, shutil.Error) as error:
        raise ArtifactError(
            f"{source.name} cannot be copied to {folder.parent}: {error}; make room, or name another"
            " folder for temporary files in TMPDIR"
        ) from error


def _size_bytes(source: Path) -> int:
    if not source.is_dir():
        return source.stat().st_size
    return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
