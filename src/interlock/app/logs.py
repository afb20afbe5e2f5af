"""Owns the form of the node's own log: one JSON object a line, to stderr or a file, never with a secret."""

import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

HIDDEN = "[hidden]"
_SECRET_WORDS = ("token", "password", "secret", "authorization", "api_key")


class JsonLines(logging.Formatter):
    """A record as one line: time, level, process, where, message, then the fields of `extra={"fields": …}`.

    Values of `secrets`, and fields whose name says that they hold one, are replaced wherever they stand.
    """

    def __init__(self, process: str, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._process = process
        self._secrets = tuple(secret for secret in secrets if secret)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update((key, _hide(key, value)) for key, value in fields.items() if key not in line)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str, ensure_ascii=False)
        for secret in self._secrets:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], HIDDEN)
        return text


def set_up(
    process: str,
    level: str = "info",
    file: Path | None = None,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send all logging of this process to `file`, or to `stream` (stderr when None), as JSON lines.

    `level` is one of debug, info, warning, error. Called once, before anything logs.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(stream or sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonLines(process, secrets))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(getattr(logging, level.upper()))
    # A log that cannot be written (disk full, pipe closed) must not take the process with it.
    logging.raiseExceptions = False


def fields(**values: Any) -> dict[str, Any]:
    """What to pass as `extra`: `log.info("switched", extra=fields(model="iris", release=7))`."""
    return {"fields": values}


def _hide(key: str, value: Any) -> Any:
    return HIDDEN if any(word in key.lower() for word in _SECRET_WORDS) else value
