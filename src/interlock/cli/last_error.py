"""Decides what a node's logs say of why it does not start: a full disk, or the last error of any process."""

import json
import re
import shutil
import time
from calendar import timegm
from pathlib import Path

TAIL_BYTES = 1 << 16
FULL_BYTES = 1 << 20
"""With less room than this no database, log or block can grow."""

_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)(: |$)")
"""The last line of a traceback that Python printed: no log was set up, or none could be written."""


def last_error(home: Path, since_s: float) -> str:
    """What went wrong in the node of a home folder after `since_s` (Unix time), in one line; "" for nothing.

    A full disk is told first: the logs are then mute. The supervisor tells of the others' ends, so that what
    they say themselves is preferred to what it says.
    """
    free = shutil.disk_usage(home).free
    full = f"the disk of {home} is full ({free:,} bytes free): make room" if free < FULL_BYTES else ""
    found: list[tuple[bool, float, str]] = []
    for log in (home / "logs").glob("*.log"):
        try:
            told_s = log.stat().st_mtime
            error = _error_in(log, since_s) if told_s >= since_s else None
        except OSError:
            continue  # it has just been removed
        if error is not None:
            found.append((log.name != "node.log", told_s, f"last error, in {log}: {error}"))
    return "; ".join(filter(None, (full, max(found)[2] if found else "")))


def _error_in(log: Path, since_s: float) -> str | None:
    with log.open("rb") as file:
        file.seek(max(file.seek(0, 2) - TAIL_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if _RAISED.match(line):
                return line[:500]
            continue
        if not isinstance(entry, dict):
            continue
        if _unix_s(str(entry.get("time"))) < since_s - 1:  # a line's time is cut, not rounded
            return None
        if entry.get("level") in ("error", "critical"):
            told = (entry.get(key) for key in ("name", "message", "reason"))
            raised = str(entry.get("traceback", "")).rstrip().rpartition("\n")[2]
            return ": ".join(str(part) for part in (*told, raised) if part)[:500]
    return None


def _unix_s(stamp: str) -> float:
    try:
        return timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
