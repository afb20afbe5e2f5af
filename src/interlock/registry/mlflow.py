"""Owns the face to the model registry: MLflow's own client and store, imported only when first asked.

Nothing global is set: every call goes through a client that was given its URIs.
"""

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any


class Registry:
    """MLflow behind one small face. `tracking_uri` None: a SQLite store and artifacts in the home folder."""

    def __init__(self, home: Path, tracking_uri: str | None = None) -> None:
        self.home = home
        self.tracking_uri = tracking_uri or f"sqlite:///{home.absolute() / 'mlflow.db'}"
        self.is_default = tracking_uri is None

    @cached_property
    def client(self) -> Any:
        """MLflow's client; importing it takes seconds."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(self.tracking_uri, self.tracking_uri)
