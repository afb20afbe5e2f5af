"""Other model servers, each in an environment of its own, all serving the same iris logistic regression."""

from __future__ import annotations

import http.client
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from benchmarks.models import IRIS_ROWS
from benchmarks.process import Started, wait_until
from interlock.operations.load import Request

NAMES = (
    "triton_python",
    "mlserver_sklearn",
    "litserve_batch",
    "bentoml_batch",
    "fastapi_naive",
    "fastapi_async",
)
JSON = {"content-type": "application/json"}


class Target(msgspec.Struct, frozen=True):
    """How one server is asked for the class of an iris row, and where the answer has it."""

    url: str
    body: Callable[[list[float]], bytes]  # of one row [4]
    label: Callable[[bytes], int]
    headers: dict[str, str] = msgspec.field(default_factory=JSON.copy)

    def request(self) -> Request:
        """The request that load generators send: the third row, whose class is 2."""
        return Request(self.url, self.body(IRIS_ROWS[2][0]), self.headers)


class Serving(msgspec.Struct, frozen=True):
    """A server that was started, and the way to ask it."""

    process: Started
    target: Target

    def stop(self) -> None:
        self.process.stop()


class Peer(Protocol):
    """What each module of this folder offers."""

    TITLE: str
    CONFIGURATION: str

    def start(self, work: Path, port: int, core: int) -> Serving:
        """Start the server on `port` of 127.0.0.1, pinned to `core`, its files under `work`."""


def peer(name: str) -> Peer:
    """The module of the peer `name`, one of NAMES."""
    if name not in NAMES:
        raise ValueError(f"no peer {name!r}; there are {', '.join(NAMES)}")
    module: Peer = importlib.import_module(f"benchmarks.peers.{name}")
    return module


def ask(request: Request, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Send once; status and body of the answer."""
    at = urlsplit(request.url)
    connection = http.client.HTTPConnection(*request.address(), timeout=timeout_s)
    try:
        connection.request(request.method, at.path, request.body, request.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wrong_answers(target: Target) -> list[str]:
    """Ask for one row of each class; what was wrong, empty if all is right."""
    wrong = []
    for row, label in IRIS_ROWS:
        status, body = ask(Request(target.url, target.body(row), target.headers))
        if status != 200 or target.label(body) != label:
            wrong.append(f"{row} is class {label}; the answer was {status} {body[:300]!r}")
    return wrong


def start_verified(name: str, work: Path, port: int, core: int) -> Serving:
    """Start a peer, wait until it answers, and check one row of each class.

    Raises: RuntimeError if it does not start, or answers wrongly.
    """
    serving = peer(name).start(work, port, core)

    def answers() -> bool:
        try:
            return ask(serving.target.request(), timeout_s=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    try:
        wait_until(answers, serving.process)
        if wrong := wrong_answers(serving.target):
            raise RuntimeError(f"{name} answers wrongly: {wrong}")
    except BaseException:
        serving.stop()
        raise
    return serving


def v2_body(row: list[float], name: str = "x") -> bytes:
    """A V2 REST request of one row."""
    tensor = {"name": name, "shape": [1, len(row)], "datatype": "FP32", "data": row}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def v2_label(body: bytes) -> int:
    """The first integer output of a V2 REST answer."""
    for output in json.loads(body)["outputs"]:
        if output["datatype"] == "INT64":
            return int(output["data"][0])
    raise ValueError(f"no INT64 output in {body!r}")
