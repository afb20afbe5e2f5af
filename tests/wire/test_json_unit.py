"""Requests that stick to a version by a field of their parameters: V2 before two versions of one model."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http.aio as triton
from tritonclient.utils import InferenceServerException

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import Model, ModelSettings, Tensors
from interlock.core.request import parse_request_id
from interlock.core.route import Arm, Mirror, Route
from interlock.core.state import ArmCounts
from interlock.serving.block import Block
from interlock.serving.counters import read_all
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.placement import Inline
from interlock.wire.http import HttpServer
from interlock.wire.v2 import V2
from tests.wire.direct import version

ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
DATA = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]


class Numbered:
    """A loaded version whose label is its number."""

    def __init__(self, number: str) -> None:
        self.number = int(number)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        rows = len(inputs["x"])
        return {
            "label": np.full(rows, self.number, np.int64),
            "probabilities": np.zeros((rows, 3), np.float32),
        }

    def close(self) -> None:
        pass


class Worker(msgspec.Struct):
    folder: Path
    port: int
    infer: Infer
    lanes: dict[str, Lane]

    def route(self, weight: float, unit_field: str | None = "user", mirror: Mirror | None = None) -> None:
        arms = (Arm(0, "incumbent", "1", 1.0 - weight), Arm(1, "candidate", "2", weight))
        self.infer.swap(Model("m"), Route(7, 1, "m:7", arms, mirror, unit_field=unit_field), self.lanes)

    def counts(self, arm: int) -> ArmCounts:
        """Of one arm, whatever its version."""
        found = ArmCounts()
        for key, counts in read_all(self.folder).items():
            if key.arm == arm:
                found = found.merge(counts)
        return found


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    block = Block.create(tmp_path, "worker-0", 11)
    infer = Infer(block, 11, lambda: read_all(tmp_path))
    versions = {number: version("m", number) for number in ("1", "2")}
    places = {number: Inline(Numbered(number)) for number in versions}
    lanes = {number: Lane(one, ModelSettings(), places[number]) for number, one in versions.items()}
    statuses = tuple(VersionStatus("m", n, one.digest, VersionState.READY) for n, one in versions.items())
    infer.update({"m": Model("m")}, statuses, {("m", n): one for n, one in versions.items()})
    server = HttpServer(V2(infer))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await server.serve(sock)
        yield Worker(tmp_path, sock.getsockname()[1], infer, lanes)
        await server.drain(5)
    for place in places.values():
        await place.close()
    block.close()
    assert server.counts.app_errors == 0


async def ask(worker: Worker, bodies: list[bytes], headers: str = "") -> list[tuple[int, Any, int]]:
    """All in one turn of the loop, on one connection: status, answered document, arm by the request's id."""
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n{headers}content-length: "
    writer.write(b"".join(f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies))
    found = []
    for _ in bodies:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        got = dict(line.split(": ", 1) for line in lines[1:] if line)
        document = json.loads(await reader.readexactly(int(got["content-length"])))
        id = got.get("interlock-request-id", "")
        found.append((int(lines[0].split()[1]), document, parse_request_id(id.encode()).arm if id else -1))
    writer.close()
    await writer.wait_closed()
    return found


def body(**parameters: Any) -> bytes:
    return json.dumps({"parameters": parameters, "inputs": DATA}).encode()


async def test_a_unit_meets_one_version_and_only_more_meet_the_candidate(worker: Worker) -> None:
    met: dict[int, int] = {}
    for weight in (0.2, 0.5, 0.8):
        worker.route(weight)
        users = [*range(80), *range(80)]
        answers = await ask(worker, [body(user=user) for user in users])
        now: dict[int, set[int]] = {}
        for user, (status, document, arm) in zip(users, answers, strict=True):
            assert status == 200 and document["outputs"][0]["data"] == [arm + 1]
            now.setdefault(user, set()).add(arm)
        assert all(len(arms) == 1 for arms in now.values()), "a user met both versions"
        share = sum(max(arms) for arms in now.values()) / len(now)
        assert abs(share - weight) < 0.2
        assert all(max(now[user]) >= arm for user, arm in met.items()), "a user went back"
        met = {user: max(arms) for user, arms in now.items()}
    strings = await ask(worker, [body(user=str(user)) for user in range(80)])
    assert {user: arm for user, (_, _, arm) in enumerate(strings)} == met, "17 and '17' are one user"


async def test_who_names_no_unit_is_drawn_whatever_a_header_says(worker: Worker) -> None:
    worker.route(0.5)
    plain = json.dumps({"inputs": DATA}).encode()
    for sent in (plain, body(other="u1"), body(user=None), body(user="")):
        answers = await ask(worker, [sent] * 60, "x-interlock-unit: u1\r\n")
        assert {status for status, _, _ in answers} == {200} and {arm for _, _, arm in answers} == {0, 1}


async def test_the_binary_extension_sticks_alike(worker: Worker) -> None:
    worker.route(0.5)
    json_arms = [arm for _, _, arm in await ask(worker, [body(user=user) for user in range(20)])]
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(ROW, binary_data=True)
    async with triton.InferenceServerClient(f"127.0.0.1:{worker.port}") as client:
        for user, arm in enumerate(json_arms):
            answer = await client.infer("m", [tensor], parameters={"user": user})
            assert answer.as_numpy("label").tolist() == [arm + 1]
        with pytest.raises(InferenceServerException, match="parameter 'user'.* is 1.5; want a string or an"):
            await client.infer("m", [tensor], parameters={"user": 1.5})


async def test_a_bad_unit_is_a_400_that_costs_its_neighbours_and_both_versions_nothing(
    worker: Worker,
) -> None:
    worker.route(0.5)
    bodies = [body(user=1), body(user=[1]), body(user=2), body(user="x" * 257), body(user=True), body(user=3)]
    answers = await ask(worker, bodies)
    assert [status for status, _, _ in answers] == [200, 400, 200, 400, 400, 200]
    assert answers[3][1]["error"] == (
        "parameter 'user', by which requests stick to a version, has 257 bytes; want a string or an integer "
        "of at most 256 bytes, or none"
    )
    both = worker.counts(0).merge(worker.counts(1))
    assert (both.dispatched, both.ok, both.failed, both.invalid) == (3, 3, 0, 0)


async def test_a_malformed_body_is_explained_and_counted_as_ever(worker: Worker) -> None:
    worker.route(0.5)
    answers = await ask(worker, [b"{", b'{"parameters": 3, "inputs": []}', body(user=1)])
    assert [status for status, _, _ in answers] == [400, 400, 200]
    assert answers[0][1]["error"].startswith("the body is not JSON")
    both = worker.counts(0).merge(worker.counts(1))
    assert (both.dispatched, both.ok, both.invalid) == (3, 1, 2)


async def test_who_names_the_version_needs_no_unit(worker: Worker) -> None:
    worker.route(0.5)
    async with triton.InferenceServerClient(f"127.0.0.1:{worker.port}") as client:
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ROW, binary_data=True)
        for user in range(10):
            answer = await client.infer("m", [tensor], model_version="2", parameters={"user": user / 4})
            assert answer.as_numpy("label").tolist() == [2]


async def test_a_share_of_a_shadow_is_drawn_by_unit(worker: Worker) -> None:
    worker.route(0.0, mirror=Mirror(1, shadow=0.5))

    async def copied(user: int) -> bool:
        before = worker.counts(254).dispatched
        assert [status for status, _, _ in await ask(worker, [body(user=user)])] == [200]
        return worker.counts(254).dispatched > before

    drawn = [await copied(user) for user in range(20)]
    assert drawn == [await copied(user) for user in range(20)] and set(drawn) == {True, False}


async def test_the_field_is_read_for_no_other_route(worker: Worker) -> None:
    worker.route(0.5, unit_field=None)
    answers = await ask(worker, [body(user=[1])] * 40, "x-interlock-unit: u1\r\n")
    assert {status for status, _, _ in answers} == {200} and len({arm for _, _, arm in answers}) == 1
    worker.infer.swap(
        Model("m"), Route(8, 0, "m:8", (Arm(0, "incumbent", "1", 1.0),)), {"1": worker.lanes["1"]}
    )
    assert {status for status, _, _ in await ask(worker, [body(user=[1])])} == {200}
