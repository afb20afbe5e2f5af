"""Holds that a store that fails in the middle of a call is left soon, whatever its health check says."""

import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from interlock.core.errors import RegistryError
from interlock.registry.mlflow import Registry

pytestmark = pytest.mark.slow

PASSWORD = "s3cr3t"


class _Fails(BaseHTTPRequestHandler):
    """Well, it says, and nothing else works."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += self.path != "/health"
        self.send_response(200 if self.path == "/health" else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Fails)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_server_that_fails_behind_its_health_check_is_asked_three_times(tmp_path: Path, port: int) -> None:
    """By itself MLflow asks it eight times, within four minutes. And its words hold the whole URI."""
    uri, started_s = f"http://ann:{PASSWORD}@127.0.0.1:{port}", time.monotonic()
    with pytest.raises(RegistryError, match=f"the registry http://127.0.0.1:{port}: ") as failed:
        Registry(tmp_path, uri).models()
    assert _Fails.asked == 3 and time.monotonic() - started_s < 60
    assert PASSWORD not in "".join(traceback.format_exception(failed.value))
