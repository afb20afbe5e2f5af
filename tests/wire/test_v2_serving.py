"""V2 in front of the real serving side: route, lane and inline place, as a worker joins them."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http.aio as triton
from tritonclient.utils import InferenceServerException

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import Model, ModelSettings, Signature, Tensors, TensorSpec
from interlock.core.request import parse_request_id
from interlock.core.route import single
from interlock.runtime.catalog import runtime_of
from interlock.runtime.check import check
from interlock.serving.block import Block
from interlock.serving.counters import read_all
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.placement import Inline, Threaded
from interlock.wire.http import HttpServer
from interlock.wire.v2 import V2
from tests.runtime.models import shared_table
from tests.wire.direct import iris, version

ROW = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)


class Iris:
    """A loaded model that remembers how many rows each batch had, and fails for a row of nines."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        self.batches.append(len(inputs["x"]))
        if (inputs["x"] == 9).any():
            raise ValueError("nines")
        answer = iris(inputs)
        return {name: answer[name] for name in outputs or answer}

    def close(self) -> None:
        pass


class Worker(msgspec.Struct):
    url: str
    port: int
    infer: Infer
    loaded: Iris


@pytest.fixture(params=["inline", "thread"])
async def worker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Worker]:
    block = Block.create(tmp_path, "worker-0", 11)
    infer = Infer(block, 11, lambda: read_all(tmp_path))
    loaded = Iris()
    one = version("iris", "1")
    place = Inline(loaded) if request.param == "inline" else Threaded(loaded, "iris")
    lane = Lane(one, ModelSettings(), place)
    model = Model("iris")
    infer.update(
        {"iris": model},
        (VersionStatus("iris", "1", one.digest, VersionState.READY),),
        {("iris", "1"): one},
    )
    infer.swap(model, single("1", release=5), {"1": lane})
    infer.ready = True
    server = HttpServer(V2(infer))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        await server.serve(sock)
        yield Worker(f"127.0.0.1:{port}", port, infer, loaded)
        await server.drain(5)
    await place.close()
    block.close()
    assert server.counts.app_errors == 0


def tensor(array: Any, name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


async def test_concurrent_requests_share_batches_and_get_their_own_rows(worker: Worker) -> None:
    async with triton.InferenceServerClient(worker.url, conn_limit=32) as client:
        rows = [ROW + n for n in range(64)]
        results = await asyncio.gather(*(client.infer("iris", [tensor(row)]) for row in rows))
        for row, result in zip(rows, results, strict=True):
            expected = iris({"x": row})
            assert np.allclose(result.as_numpy("probabilities"), expected["probabilities"], atol=1e-6)
        assert sum(worker.loaded.batches) == 64
        (entry,) = (await client.get_inference_statistics("iris"))["model_stats"]
        assert entry["inference_count"] == 64
        assert entry["execution_count"] == len(worker.loaded.batches)
        assert entry["inference_stats"]["success"]["count"] == 64
        assert entry["inference_stats"]["compute_infer"]["ns"] > 0


async def test_one_turn_answers_each_in_the_form_that_it_asked_for(worker: Worker) -> None:
    asks: list[dict[str, Any]] = [
        {},
        {"id": "mine"},
        {"outputs": [{"name": "label"}]},
        {"parameters": {"binary_data_output": True}},
        {},
    ]
    sent = b""
    for number, ask in enumerate(asks):
        data = (ROW + number).tolist()
        message = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}], **ask}
        )
        sent += b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
            len(message),
            message.encode(),
        )
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(sent)
    ids = set()
    for number, ask in enumerate(asks):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        answer = json.loads(body[: int(headers.get("inference-header-content-length", len(body)))])
        expected = iris({"x": ROW + number})
        assert answer.get("id") == ask.get("id")
        names = ["label"] if "outputs" in ask else ["label", "probabilities"]
        assert [output["name"] for output in answer["outputs"]] == names
        if "parameters" not in ask:
            assert answer["outputs"][0]["data"] == expected["label"].tolist()
        else:
            assert body.endswith(expected["probabilities"].astype("<f4").tobytes())
        ids.add(headers["interlock-request-id"])
    assert len(ids) == len(asks)
    writer.close()


async def test_a_poisoned_row_fails_alone(worker: Worker) -> None:
    async with triton.InferenceServerClient(worker.url, conn_limit=32) as client:
        rows = [ROW, np.full((1, 4), 9, np.float32), ROW + 1]
        good, bad, other = await asyncio.gather(
            *(client.infer("iris", [tensor(row)]) for row in rows), return_exceptions=True
        )
    assert not isinstance(good, BaseException) and not isinstance(other, BaseException)
    assert isinstance(bad, InferenceServerException) and "ValueError: nines" in bad.message()
    assert bad.status() == "500"
    assert np.allclose(good.as_numpy("probabilities"), iris({"x": ROW})["probabilities"])
    assert np.allclose(other.as_numpy("probabilities"), iris({"x": ROW + 1})["probabilities"])


async def test_metadata_index_config_and_refusals_of_the_real_side(worker: Worker) -> None:
    async with triton.InferenceServerClient(worker.url) as client:
        assert await client.is_model_ready("iris", "1") and not await client.is_model_ready("none")
        assert (await client.get_model_metadata("iris"))["versions"] == ["1"]
        assert (await client.get_model_config("iris"))["max_batch_size"] == 256
        assert await client.get_model_repository_index() == [
            {"name": "iris", "version": "1", "state": "READY", "reason": ""}
        ]
        with pytest.raises(InferenceServerException, match="allow-repository-control"):
            await client.unload_model("iris")
        with pytest.raises(InferenceServerException, match="model 'none' is not served here; served: 'iris'"):
            await client.infer("none", [tensor(ROW)])
        with pytest.raises(InferenceServerException, match="version '7' of model 'iris' is not loaded"):
            await client.infer("iris", [tensor(ROW)], "7")


async def test_the_request_id_tells_release_and_worker(worker: Worker) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW.ravel().tolist()}
    body = json.dumps({"inputs": [entry]}).encode()
    writer.write(
        b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    (line,) = [line for line in head.split(b"\r\n") if line.startswith(b"interlock-request-id: ")]
    parsed = parse_request_id(line.partition(b": ")[2])
    assert (parsed.release, parsed.arm, parsed.origin) == (5, 0, 11)


def request_bytes(inputs: list[dict[str, Any]], path: str = "iris") -> bytes:
    body = json.dumps({"inputs": inputs}).encode()
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(), len(body), body,
    )  # fmt: skip


async def statuses(port: int, *requests: bytes) -> list[int]:
    """The statuses of requests that are all sent at once, in the order of their answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    found = []
    for _ in requests:
        head = await reader.readuntil(b"\r\n\r\n")
        found.append(int(head.split()[1]))
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split()[1]))
    writer.close()
    return found


def entry(columns: int = 4, value: float = 1.0) -> dict[str, Any]:
    return {"name": "x", "shape": [1, columns], "datatype": "FP32", "data": [value] * columns}


async def test_what_the_wire_refuses_is_counted_as_the_clients_fault(worker: Worker) -> None:
    bad = b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{]"
    late = request_bytes([entry()]).replace(b"host: x", b"host: x\r\nx-request-timeout-ms: 0.000001")
    requests = [request_bytes([entry(3)]), bad, request_bytes([]), request_bytes([entry()])]
    requests += [late, request_bytes([entry()], "none"), request_bytes([entry(3)], "iris/versions/7")]
    found = await statuses(worker.port, *requests)
    assert found == [400, 400, 400, 200, 503, 404, 404]
    ((key, counts),) = worker.infer.stats(None, None)
    assert (key.model, key.version, key.release) == ("iris", "1", 5)
    assert (counts.dispatched, counts.invalid, counts.ok, counts.timed_out) == (5, 3, 1, 1)
    assert counts.total.count == 5


async def test_statistics_are_read_beside_the_loop_and_answered_in_order(worker: Worker) -> None:
    reading, go_on = threading.Event(), threading.Event()
    counts = worker.infer._counts

    def slow() -> Any:
        reading.set()
        assert go_on.wait(10)
        return counts()

    worker.infer._counts = slow
    statistics = b"GET /v2/models/stats HTTP/1.1\r\nhost: x\r\n\r\n"
    pipelined = asyncio.create_task(statuses(worker.port, statistics, request_bytes([entry(3)])))
    while not reading.is_set():
        await asyncio.sleep(0)
    assert await asyncio.wait_for(statuses(worker.port, request_bytes([entry()])), 5) == [200]
    assert not pipelined.done()
    go_on.set()
    assert await pipelined == [200, 400]


async def test_a_model_with_an_input_of_no_rows_answers_each_request_with_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(shared_table())
    draft = msgspec.structs.replace(version("table", "1", Signature((), ())), entry="model.onnx")
    report = check(folder, draft)
    assert report.failures == () and not report.capabilities.batchable
    one = msgspec.structs.replace(draft, signature=report.signature, capabilities=report.capabilities)
    block = Block.create(tmp_path, "worker-0", 11)
    infer = Infer(block, 11, lambda: read_all(tmp_path))
    place = Inline(runtime_of("onnx").load(folder, one))
    infer.update({"table": Model("table")}, (), {("table", "1"): one})
    infer.swap(Model("table"), single("1", release=5), {"1": Lane(one, ModelSettings(), place)})
    server = HttpServer(V2(infer))
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)

    async def ask(client: triton.InferenceServerClient, number: int) -> Any:
        table = np.full((1, 3), 100 * number, np.float32)
        sent = [tensor(rows[: number % 4 + 1]), tensor(table, "table")]
        return (await client.infer("table", sent)).as_numpy("y").tolist()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        await server.serve(sock)
        url = f"127.0.0.1:{sock.getsockname()[1]}"
        async with triton.InferenceServerClient(url, conn_limit=32) as client:
            assert (await client.get_model_config("table"))["max_batch_size"] == 0
            answers = await asyncio.gather(*(ask(client, number) for number in range(32)))
            for number, answer in enumerate(answers):
                assert answer == (rows[: number % 4 + 1] + 100 * number).tolist()
            with pytest.raises(InferenceServerException, match="table"):
                await client.infer("table", [tensor(rows), tensor(rows, "table")])
        await server.drain(5)
    await place.close()
    block.close()


async def test_answers_that_cannot_be_encoded_are_failures_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unlike:
        def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
            return {"y": np.array([b"\xff" if row[0] else b"fine" for row in inputs["x"]], object)}

        def close(self) -> None:
            pass

    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "BYTES", (-1,)),))
    block = Block.create(tmp_path, "worker-0", 11)
    infer = Infer(block, 11, lambda: read_all(tmp_path))
    place = Inline(Unlike())
    one = version("iris", "1", signature)
    infer.update({"iris": Model("iris")}, (), {("iris", "1"): one})
    infer.swap(Model("iris"), single("1", release=5), {"1": Lane(one, ModelSettings(), place)})
    server = HttpServer(V2(infer))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await server.serve(sock)
        port = sock.getsockname()[1]
        requests = [request_bytes([entry(value=value)]) for value in (1.0, 0.0, 1.0, 1.0)]
        with caplog.at_level("ERROR", "interlock.wire"):
            found = [(await statuses(port, request))[0] for request in requests]
        await server.drain(5)
    assert found == [500, 200, 500, 500]
    ((_, counts),) = infer.stats(None, None)
    assert (counts.dispatched, counts.ok, counts.failed, counts.total.count) == (4, 1, 3, 4)
    told = [record for record in caplog.records if record.name == "interlock.wire"]
    assert [record.getMessage() for record in told] == ["outputs could not be encoded"]
    assert told[0].fields["model"] == "iris" and told[0].fields["request_id"].startswith("5-")  # type: ignore[attr-defined]
    await place.close()
    block.close()
