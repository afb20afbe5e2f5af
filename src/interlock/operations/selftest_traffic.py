"""Owns the load of a self-test: made-up requests, sent over V2 on the data port at a steady rate."""

from __future__ import annotations

import http.client
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec

from interlock.codec.raw import pack, unpack
from interlock.core.fault import Fault
from interlock.runtime import examples
from interlock.runtime.fault import marked

if TYPE_CHECKING:
    from interlock.core.model import Signature, Tensors

REQUESTS = 1000
"""Different requests, sent in turn: enough for a share of them to be as small as faults are."""
CONNECTIONS = 8
TIMEOUT_S = 15.0
NICE = 10
"""As control: who serves goes first."""
SEEDS = 64
_LATE_S = 0.1
"""How far the load may fall behind before requests are left out: a node that was busy gets no burst."""

Sent = tuple[bytes, dict[str, str]]
"""Body and headers."""


def made_up(signature: Signature, data: Tensors | None) -> list[Tensors]:
    """Requests of one row each: those of `data` in turn, or what fits the signature, as registration draws it
    (standard normals, zeros and ones, a few short words). As a model gets them.

    Raises: CheckFailed if the data do not fit.
    """
    if data is not None:
        rows = examples.texts_as_bytes(examples.fit(signature, data))
        found = [examples.take(rows, start, 1) for start in range(REQUESTS)]
    elif signature.batch_axis == 0:
        rows = examples.texts_as_bytes(examples.generate(signature, REQUESTS))
        found = [examples.take(rows, start, 1) for start in range(REQUESTS)]
    else:
        each = (examples.generate(signature, 1, seed) for seed in range(REQUESTS))
        found = [examples.texts_as_bytes(one) for one in each]
    kinds = {spec.name: spec.datatype for spec in signature.inputs}
    rounded = [name for name, datatype in kinds.items() if datatype == "BF16"]
    for one in found if rounded else ():
        for name in rounded:  # what arrives has fewer digits, and a fault is drawn by what arrives
            array = one[name]
            packed = memoryview(pack(name, "BF16", array))
            one[name] = unpack(name, "BF16", array.shape, math.prod(array.shape), packed)
    return found


def aimed(fault: Fault, requests: list[Tensors], has_rows: bool) -> tuple[Fault, float]:
    """The fault with the seed by which it concerns the share of these requests that is nearest to its level,
    and at least one of them; and that share, 0 where they are too alike for that."""
    if fault.kind == "slow":
        return fault, 1.0
    tried = [msgspec.structs.replace(fault, seed=seed) for seed in range(SEEDS)]
    shares = [sum(bool(marked(one, seeded, has_rows)[0]) for one in requests) for seeded in tried]
    found = [(seeded, hit / len(requests)) for seeded, hit in zip(tried, shares, strict=True) if hit]
    return min(found, key=lambda one: abs(one[1] - fault.level), default=(fault, 0.0))


class Traffic:
    """Requests to one model, at `rate_per_s` at most: `CONNECTIONS` wait for their answers.

    `asked` and `failed` count; `told` is what the last answer said that was not well.
    """

    def __init__(self, url: str, model: str, requests: list[Sent], rate_per_s: float) -> None:
        self.asked = 0
        self.failed = 0
        self.told = ""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = f"/v2/models/{quote(model, safe='')}/infer"
        self._requests = requests
        self._every_s = 1.0 / rate_per_s
        self._due_s = 0.0
        self._number = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send from now on, until the end of the block."""
        threads = [threading.Thread(target=self._send, name="traffic") for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _send(self) -> None:
        os.nice(NICE)  # on Linux of this thread alone
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        while True:
            with self._lock:
                self._due_s = max(self._due_s + self._every_s, time.monotonic() - _LATE_S)
                wait_s = self._due_s - time.monotonic()
                body, headers = self._requests[self._number % len(self._requests)]
                self._number += 1
            if self._stop.wait(max(wait_s, 0.0)):
                break
            self._count(self._one(connection, body, headers))
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> str:
        """What was wrong; "" if it was answered well."""
        try:
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            return "" if answer.status == 200 else f"{answer.status} {said[:300].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"{type(error).__name__}: {error}"

    def _count(self, wrong: str) -> None:
        with self._lock:
            self.asked += 1
            if wrong:
                self.failed += 1
                self.told = wrong


def encoded(signature: Signature, request: Tensors) -> Sent:
    """A request in V2's binary form, which carries each number as it is."""
    parts, inputs = [], []
    for spec in signature.inputs:
        array = request[spec.name]
        data = bytes(pack(spec.name, spec.datatype, array))
        parts.append(data)
        size = {"binary_data_size": len(data)}
        inputs.append(
            {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "parameters": size}
        )
    head = msgspec.json.encode({"inputs": inputs})
    return head + b"".join(parts), {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
