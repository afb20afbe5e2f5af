"""V2 in front of the real serving side: route, lane and inline place, as a worker joins them."""

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
from interlock.core.route import single
from interlock.serving.block import Block
from interlock.serving.counters import read_all
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.placement import Inline, Threaded
from interlock.wire.http import HttpServer
from interlock.wire.v2 import V2
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


def tensor(array: Any) -> triton.InferInput:
    made = triton.InferInput("x", list(array.shape), "FP32")
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
