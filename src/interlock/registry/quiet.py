"""Owns what a call of MLflow needs of the whole process: few and short retries, no telemetry, no chatter.

MLflow takes these from the environment alone. They are put back when the last thread that needs them is done,
and what the user has set of the retries stands.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
UNLESS_SET = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
"""Three tries within about three seconds; by themselves eight, within four minutes."""
LEVELS = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}


class _Lent:
    """The environment and the log levels of this process, as they were before the first call within."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._environment: dict[str, str | None] = {}
        self._levels: dict[str, int] = {}

    def take(self) -> None:
        with self._lock:
            if not self._depth:
                wanted = {**ALWAYS, **{k: v for k, v in UNLESS_SET.items() if k not in os.environ}}
                self._environment = {key: os.environ.get(key) for key in wanted}
                self._levels = {name: logging.getLogger(name).level for name in LEVELS}
                os.environ.update(wanted)
            self._depth += 1
            for name, level in LEVELS.items():  # each time: importing MLflow sets its own
                logging.getLogger(name).setLevel(level)

    def give_back(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)
            for key, value in self._environment.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


_LENT = _Lent()
"""One, as the process has one environment."""


@contextmanager
def quiet() -> Iterator[None]:
    """For one call of MLflow's; may be nested, and used from several threads at once."""
    _LENT.take()
    try:
        yield
    finally:
        _LENT.give_back()
