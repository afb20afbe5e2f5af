"""Owns what a worker writes down of feedback, until control has taken it into the database.

Each worker appends to a file of its own; a full one is left for the next. A line that was written survives
the end of any process (not that of the machine: nothing is synced for each request).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import time

import msgspec

from interlock.core.errors import Unavailable
from interlock.core.feedback import Feedback, Note, inbox_folder

PART_BYTES = 4 * 1024 * 1024
"""A file beyond this is followed by another, so that what was taken in can be deleted."""
MOST_BYTES = 256 * 1024 * 1024
"""Of all files together: while control is away they grow."""

_encode = msgspec.json.Encoder().encode


class Inbox:
    """The files of one worker. For its event loop: a call costs some 6 us, and .4 us an item."""

    def __init__(self, home: Path, process: str, incarnation: int) -> None:
        self._folder = inbox_folder(home)
        self._name = f"{process}.{incarnation:016x}"
        self._part = 0
        self._file = -1
        self._size = 0

    def keep(self, items: Sequence[Feedback]) -> None:
        """Append all items. Raises: Unavailable; none of them is kept then, or they are kept twice over when
        they are sent again, which counts once."""
        came_ms = int(time() * 1000)
        data = b"".join(_encode(Note(item.id, item.name, item.value, came_ms)) + b"\n" for item in items)
        try:
            if self._file < 0 or self._size > PART_BYTES:
                self._next()
            written = os.write(self._file, data)
        except OSError as error:
            self.close()
            raise Unavailable(f"the feedback cannot be written down: {error}; send it again") from error
        self._size += written
        if written < len(data):  # a line was cut: nothing is to follow it
            self.close()
            raise Unavailable("the feedback cannot be written down: the disk is full; send it again")

    def _next(self) -> None:
        self.close()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        waiting = 0
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # control has just read it
                waiting += path.stat().st_size
        if waiting > MOST_BYTES:
            raise OSError(f"{waiting} bytes of feedback wait for control already")
        self._part += 1
        path = self._folder / f"{self._name}.{self._part:08x}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
