"""Holds what of a registry's URI is shown, and that the question whether it answers is short."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.registry.address import HIDDEN, Address

PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), min_size=8)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/ann@work/mlflow.db", "sqlite:////home/ann@work/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("https://ann:s3cr3t@mlflow/base/", "https://mlflow/base/"),
        ("postgresql+pg8000://ann:p%40ss@db/mlflow", "postgresql+pg8000://db/mlflow"),
        ("postgresql://ann@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://ann:p/a@ss@db/x?host=/a@b", "postgresql://db/x?host=/a@b"),
        ("postgresql:///x?user=ann&password=p%40ss", "postgresql:///x?user=ann&password=***"),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_of_a_uri(uri: str, shown: str) -> None:
    assert Address(uri).shown == shown


@given(PASSWORDS)
def test_no_password_is_left_in_what_is_shown_or_in_a_text_of_others(password: str) -> None:
    address = Address(f"postgresql://ann:{password}@db:5432/mlflow")
    assert address.shown == "postgresql://db:5432/mlflow"
    assert address.hide(f"refused {password}!") == f"refused {HIDDEN}!"


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/base/health" else 500)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "why"), [(200, None), (401, None), (404, None), (503, "it answers 503 Service Unavailable")]
)
def test_who_refuses_is_there_and_a_proxy_without_a_server_is_not(
    port: int, monkeypatch: pytest.MonkeyPatch, status: int, why: str | None
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    assert Address(f"http://ann:s3cr3t@127.0.0.1:{port}/base").why_silent() == why


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_where_nobody_listens_the_reason_comes_at_once(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"{scheme}://ann:s3cr3t@127.0.0.1:{taken.getsockname()[1]}/x"
        assert Address(uri).why_silent() == "Connection refused"


def test_who_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started_s = time.monotonic()
        why = Address(f"http://127.0.0.1:{deaf.getsockname()[1]}").why_silent(timeout_s=0.1)
        assert why == "no answer within 0.1 s" and time.monotonic() - started_s < 5


def test_a_certificate_that_we_do_not_know_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow has settings of its own for it."""

    def refuse(*arguments: object, **options: object) -> None:
        raise ssl.SSLCertVerificationError("self-signed certificate")

    with socket.create_server(("127.0.0.1", 0)) as there:
        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
        assert Address(f"https://127.0.0.1:{there.getsockname()[1]}").why_silent() is None


@pytest.mark.parametrize(
    "uri", ["sqlite:////nowhere/x.db", "databricks", "postgresql:///x?host=/run", "postgresql://a:1,b:2/x"]
)
def test_what_only_mlflow_can_tell_is_left_to_it(uri: str) -> None:
    assert Address(uri).why_silent() is None
