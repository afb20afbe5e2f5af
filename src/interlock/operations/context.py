"""Owns what every operation works on: a home folder with its ledger and its registry."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interlock.core.errors import ConfigError
from interlock.registry.ledger import Ledger
from interlock.registry.mlflow import Registry


@dataclass(frozen=True)
class Context:
    """One home folder, opened. `now_s` tells wall-clock seconds (Unix) for what is recorded."""

    home: Path
    ledger: Ledger
    registry: Registry
    now_s: Callable[[], float] = time.time

    def close(self) -> None:
        """Give the ledger's connections back."""
        self.ledger.close()


def default_home() -> Path:
    """`INTERLOCK_HOME`, or `~/.interlock`."""
    return Path(os.environ.get("INTERLOCK_HOME") or "~/.interlock").expanduser()


def open_context(
    home: Path | None = None,
    *,
    tracking_uri: str | None = None,
    now_s: Callable[[], float] = time.time,
) -> Context:
    """Open a home folder (made with mode 0700 if it is missing). MLflow is opened when first used.

    `tracking_uri` defaults to `MLFLOW_TRACKING_URI`, and else to a store in the home folder.
    Raises: ConfigError if the folder cannot be made; LedgerError, SchemaTooNew.
    """
    folder = (default_home() if home is None else home.expanduser()).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"home folder {folder}: {error.strerror or error}; choose another with --home"
        ) from None
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    return Context(folder, Ledger(folder / "ledger.db"), Registry(folder, uri), now_s)


@contextmanager
def opened(home: Path | None = None) -> Iterator[Context]:
    """`open_context` for a `with` block."""
    context = open_context(home)
    try:
        yield context
    finally:
        context.close()
