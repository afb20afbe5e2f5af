"""tritonclient with its default settings (binary tensors on), blocking and asyncio, against a real server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as blocking
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

from interlock.core.model import DATATYPES, Array, Signature, TensorSpec, artifact_path
from interlock.operations.context import opened
from interlock.operations.register import register
from tests.app.nodes import RunningNode, put_onnx, until
from tests.wire.direct import DirectInfer, iris, serving, version
from tests.wire.node import Node, running

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [1.0, 2.0, 3.0, 4.0]], np.float32)


@pytest.fixture(scope="module")
def infer() -> DirectInfer:
    infer = serving()
    for datatype in DATATYPES:
        signature = Signature(
            inputs=(TensorSpec("a", datatype, (-1, -1)), TensorSpec("n", "INT32", (1,))),
            outputs=(TensorSpec("b", datatype, (-1, -1)), TensorSpec("m", "INT32", (1,))),
        )
        infer.add(version(f"echo {datatype}", "1", signature), lambda i: {"b": i["a"], "m": i["n"]})
    return infer


@pytest.fixture(scope="module")
def node(infer: DirectInfer) -> Iterator[Node]:
    with running(infer) as up:
        yield up


@pytest.fixture
def client(node: Node) -> Iterator[blocking.InferenceServerClient]:
    with blocking.InferenceServerClient(f"127.0.0.1:{node.port}") as client:
        yield client


def tensor(kind: type, name: str, array: Array, datatype: str) -> blocking.InferInput:
    made = kind(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def values(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([[b"a", b"\xff\0"], [b"", "ä".encode()]], object)
    if datatype == "BF16":
        return np.array([[1.5, -2.0], [0.0, 3e38]], ml_dtypes.bfloat16)
    return np.array([[0, 1], [1, 100]]).astype(DATATYPES[datatype])


def test_infer_with_no_special_setting(client: blocking.InferenceServerClient) -> None:
    result = client.infer("iris", [tensor(blocking.InferInput, "x", ROWS, "FP32")], request_id="mine")
    expected = iris({"x": ROWS})
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_version"] == "2"
    assert result.as_numpy("label").tolist() == expected["label"].tolist()
    assert result.as_numpy("probabilities").tobytes() == expected["probabilities"].tobytes()


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_both_ways(client: blocking.InferenceServerClient, datatype: str) -> None:
    sent = values(datatype)
    inputs = [
        tensor(blocking.InferInput, "n", np.array([7], np.int32), "INT32"),
        tensor(blocking.InferInput, "a", sent, datatype),
    ]
    result = client.infer(f"echo {datatype}", inputs)
    assert result.as_numpy("b").tolist() == sent.tolist()
    assert result.as_numpy("m").tolist() == [7]


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(client: blocking.InferenceServerClient, compression: str) -> None:
    inputs = [tensor(blocking.InferInput, "x", ROWS, "FP32")]
    result = client.infer("iris", inputs, request_compression_algorithm=compression)
    assert result.as_numpy("probabilities").shape == (2, 3)


def test_timeouts_priorities_and_requested_outputs(
    client: blocking.InferenceServerClient, infer: DirectInfer
) -> None:
    outputs = [blocking.InferRequestedOutput("probabilities", binary_data=False)]
    inputs = [tensor(blocking.InferInput, "x", ROWS, "FP32")]
    result = client.infer("iris", inputs, "1", outputs=outputs, timeout=1_500_000, priority=1)
    request = infer.requests[-1]
    assert (round(request.deadline_s - request.received_s, 6), request.priority, request.version) == (
        1.5,
        0,
        "1",
    )
    assert [output["name"] for output in result.get_response()["outputs"]] == ["probabilities"]
    assert np.allclose(result.as_numpy("probabilities"), iris({"x": ROWS})["probabilities"])


def test_health_metadata_config_index_and_statistics(client: blocking.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("my model") and client.is_model_ready("iris", "1")
    assert not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("iris")["versions"] == ["1", "2"]
    assert client.get_model_config("iris", "1")["input"][0]["data_type"] == "TYPE_FP32"
    assert {"iris", "broken"} <= {entry["name"] for entry in client.get_model_repository_index()}
    client.infer("my model", [tensor(blocking.InferInput, "x", ROWS, "FP32")])
    (entry,) = client.get_inference_statistics("my model")["model_stats"]
    assert entry["inference_count"] >= 2
    assert client.get_inference_statistics()["model_stats"]


def test_errors_reach_the_client_as_messages(client: blocking.InferenceServerClient) -> None:
    inputs = [tensor(blocking.InferInput, "x", ROWS[:, :3], "FP32")]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("iris", inputs)
    assert caught.value.status() == "400"
    assert caught.value.message() == "input 'x': got shape [2, 3]; the signature wants [-1, 4]"
    with pytest.raises(InferenceServerException, match="allow-repository-control"):
        client.load_model("iris")
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        outputs = [blocking.InferRequestedOutput("probabilities", class_count=2)]
        client.infer("iris", [tensor(blocking.InferInput, "x", ROWS, "FP32")], outputs=outputs)


def test_the_asynchronous_calls_of_the_blocking_client(node: Node) -> None:
    with blocking.InferenceServerClient(f"127.0.0.1:{node.port}", concurrency=4) as client:
        calls = [
            client.async_infer(
                "iris", [tensor(blocking.InferInput, "x", ROWS + n, "FP32")], request_id=str(n)
            )
            for n in range(20)
        ]
        for n, call in enumerate(calls):
            result = call.get_result()
            assert result.get_response()["id"] == str(n)
            assert np.array_equal(result.as_numpy("label"), iris({"x": ROWS + n})["label"])


async def test_the_aio_client(node: Node) -> None:
    async with aio.InferenceServerClient(f"127.0.0.1:{node.port}") as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("iris")
        assert (await client.get_server_metadata())["name"] == "triton"
        assert (await client.get_model_metadata("iris"))["name"] == "iris"
        assert (await client.get_model_config("iris"))["max_batch_size"] == 256
        assert await client.get_model_repository_index()
        inputs = [tensor(aio.InferInput, "x", ROWS, "FP32")]
        results = await asyncio.gather(*(client.infer("iris", inputs, request_id=str(n)) for n in range(32)))
        assert [result.get_response()["id"] for result in results] == [str(n) for n in range(32)]
        assert results[0].as_numpy("probabilities").shape == (2, 3)
        assert (await client.get_inference_statistics("iris"))["model_stats"]
        with pytest.raises(InferenceServerException):
            await client.infer("none", inputs)


@pytest.mark.beside
@pytest.mark.server
def test_repository_control_takes_a_model_off_and_brings_it_back(home_with_store: Path) -> None:
    other = put_onnx(home_with_store, "other", "1", 3.0)
    with opened(home_with_store) as ctx:  # load asks the registry which version is the newest
        register(ctx, "triple", artifact_path(home_with_store, other.digest) / "model.onnx")
    rows = np.array([[1.5, 2.0]], np.float32)
    inputs = [tensor(blocking.InferInput, "x", rows, "FP32")]
    with RunningNode(home_with_store, workers=1, allow_repository_control=True) as node:
        node.wait_ready()
        for name in ("triple", "other"):
            assert node.release(name, "1").state == "done"
        with blocking.InferenceServerClient(f"127.0.0.1:{node.node.http_port}") as client:

            def shown() -> dict[str, tuple[str, str]]:
                index = client.get_model_repository_index()
                return {entry["name"]: (entry["state"], entry["reason"]) for entry in index}

            assert shown() == {"triple": ("READY", ""), "other": ("READY", "")}
            client.unload_model("triple")
            assert not client.is_model_ready("triple"), "it is gone when the call returns"
            until(lambda: shown()["triple"] == ("UNAVAILABLE", "unloaded"), "the unload")
            assert shown()["other"] == ("READY", "")
            assert client.is_server_ready() and not client.is_model_ready("triple")
            with pytest.raises(
                InferenceServerException, match="model 'triple' is unloaded; load it"
            ) as caught:
                client.infer("triple", inputs)
            assert caught.value.status() == "503"
            client.unload_model("triple")  # once more changes nothing
            # A worker that has just started knows it as well.
            node.kill("worker-0")
            until(lambda: node.infer("other") == (200, 6.0), "the new worker")
            assert shown()["triple"] == ("UNAVAILABLE", "unloaded")
            with pytest.raises(InferenceServerException, match="none"):
                client.unload_model("none")

            client.load_model("triple")
            assert shown() == {"triple": ("READY", ""), "other": ("READY", "")}
            assert client.infer("triple", inputs).as_numpy("y").tolist() == [[4.5, 6.0]]


@pytest.mark.server
@pytest.mark.beside
def test_both_clients_on_a_whole_node(interlock_home: Path) -> None:
    put_onnx(interlock_home, "double", "1", 2.0)
    rows = np.array([[1.5, 2.0], [0.0, -1.0]], np.float32)

    async def ask(url: str) -> Array:
        async with aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            result = await client.infer("double", [tensor(aio.InferInput, "x", rows, "FP32")])
            answer: Array = result.as_numpy("y")
            return answer

    with RunningNode(interlock_home, workers=2) as node:
        node.wait_ready()
        assert node.release("double", "1").state == "done"
        url = f"127.0.0.1:{node.node.http_port}"
        with blocking.InferenceServerClient(url) as client:
            assert (
                client.is_server_live() and client.is_server_ready() and client.is_model_ready("double", "1")
            )
            assert client.get_server_metadata()["name"] == "interlock"
            assert client.get_model_metadata("double")["versions"] == ["1"]
            assert client.get_model_config("double")["input"][0]["dims"] == [2]
            assert [entry["state"] for entry in client.get_model_repository_index()] == ["READY"]
            result = client.infer("double", [tensor(blocking.InferInput, "x", rows, "FP32")])
            assert result.as_numpy("y").tolist() == [[3.0, 4.0], [0.0, -2.0]]
            assert asyncio.run(ask(url)).tolist() == [[3.0, 4.0], [0.0, -2.0]]
            (entry,) = client.get_inference_statistics("double")["model_stats"]
            # Both workers' counts, whichever of them answers this.
            assert entry["inference_count"] >= 4
            assert entry["inference_stats"]["success"]["count"] >= 2
            with pytest.raises(InferenceServerException, match="allow-repository-control"):
                client.unload_model("double")
