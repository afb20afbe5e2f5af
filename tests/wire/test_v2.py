"""V2 over a real HttpServer: what paths answer, what headers change, and what a leaving client does."""

import gzip
import json
import socket
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest

from interlock.core.errors import NotReady, PredictFailed
from interlock.core.model import Signature, TensorSpec
from interlock.core.request import parse_request_id
from interlock.core.state import BUCKETS, ArmCounts, ArmKey, Histogram
from interlock.wire.v2_call import Call
from interlock.wire.v2_views import statistics
from tests.wire.direct import DirectInfer, iris, serving, version
from tests.wire.node import Answer, Node, running

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def infer() -> DirectInfer:
    return serving()


@pytest.fixture
def node(infer: DirectInfer) -> Iterator[Node]:
    with running(infer) as up:
        yield up


def wait_until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen within 20 s"
        time.sleep(0.001)


def test_health_says_live_and_ready_and_the_truth(node: Node, infer: DirectInfer) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/health/ready/"):
        answer = node.ask("GET", path)
        assert (answer.status, answer.json) == (200, {"live": True, "ready": True})
    model = node.ask("GET", "/v2/models/iris/versions/1/ready")
    assert (model.status, model.json) == (200, {"live": True, "ready": True, "name": "iris"})
    infer.ready = False
    assert node.ask("GET", "/v2/health/live").status == 200
    assert node.ask("GET", "/v2/health/ready").status == 503
    model = node.ask("GET", "/v2/models/iris/ready")
    assert (model.status, model.json["ready"]) == (503, False)


def test_head_is_get_without_the_body(node: Node) -> None:
    head, get = node.ask("HEAD", "/v2/models/iris"), node.ask("GET", "/v2/models/iris")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))


def test_metadata_of_server_model_and_version(node: Node) -> None:
    server = node.ask("GET", "/v2").json
    assert (server["name"], server["version"]) == ("triton", "1.2.3")
    assert "binary_tensor_data" in server["extensions"]
    model = node.ask("GET", "/v2/models/iris").json
    assert (model["name"], model["versions"], model["platform"]) == ("iris", ["1", "2"], "onnxruntime_onnx")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert node.ask("GET", "/v2/models/iris/versions/1").json["versions"] == ["1"]


def test_config_leaves_the_batch_axis_out_of_the_dims(node: Node, infer: DirectInfer) -> None:
    fixed = Signature((TensorSpec("s", "BYTES", (2,)),), (TensorSpec("y", "BF16", ()),), batch_axis=None)
    infer.add(version("fixed", "1", fixed), lambda inputs: {})
    iris = node.ask("GET", "/v2/models/iris/config").json
    assert (iris["max_batch_size"], "dynamic_batching" in iris) == (256, True)
    assert iris["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    config = node.ask("GET", "/v2/models/fixed/versions/1/config").json
    assert (config["max_batch_size"], "dynamic_batching" in config) == (0, False)
    assert config["input"] == [{"name": "s", "data_type": "TYPE_STRING", "dims": [2]}]
    assert config["output"] == [
        {"name": "y", "data_type": "TYPE_BF16", "dims": [1], "reshape": {"shape": []}}
    ]


def test_repository_index_lists_versions_with_their_state(node: Node) -> None:
    everything = node.ask("POST", "/v2/repository/index").json
    assert {
        "name": "broken",
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "the file is cut off",
    } in everything
    ready = node.ask("POST", "/v2/repository/index", b'{"ready":true}').json
    assert [entry for entry in everything if entry["state"] == "READY"] == ready
    assert node.ask("POST", "/v2/repository/index", b'{"ready":1}').status == 400


def test_load_and_unload_need_permission(node: Node, infer: DirectInfer) -> None:
    refused = node.ask("POST", "/v2/repository/models/iris/load")
    assert refused.status == 403 and "--allow-repository-control" in refused.error
    infer.allows_repository = True
    for action, body in (("load", b""), ("unload", b'{"parameters":{"unload_dependents":false}}')):
        answer = node.ask("POST", f"/v2/repository/models/my%20model/{action}", body)
        assert (answer.status, answer.body) == (200, b"")
    assert infer.repository_calls == [("load", "my model"), ("unload", "my model")]
    assert node.ask("POST", "/v2/repository/models/none/load").status == 404
    configured = node.ask("POST", "/v2/repository/models/iris/load", b'{"parameters":{"config":"{}"}}')
    assert configured.status == 501 and "config" in configured.error


def test_json_has_a_limit_of_its_own_and_binary_tensors_have_not(infer: DirectInfer) -> None:
    said = "bytes of JSON; the limit is 400: send the tensors as binary data"
    text = json.dumps({"inputs": [{"name": "x", "shape": [64, 4], "datatype": "FP32", "data": [0.5] * 256}]})
    body = text.encode()
    head = {"inputs": [{**ROW["inputs"][0], "shape": [64, 4], "parameters": {"binary_data_size": 1024}}]}
    del head["inputs"][0]["data"]
    binary = json.dumps(head).encode()
    with running(infer, max_json_bytes=400) as node:
        path = "/v2/models/iris/infer"
        packed = gzip.compress(body)
        assert len(packed) < 400 < len(body)
        cases: list[tuple[bytes | Iterator[bytes], dict[str, str]]] = [
            (body, {}),
            (packed, {"content-encoding": "gzip"}),
            (iter([body]), {}),
            (binary + b" " * 400 + bytes(1024), {"inference-header-content-length": str(len(binary) + 400)}),
        ]
        for sent, headers in cases:
            refused = node.ask("POST", path, sent, headers)
            assert (refused.status, said in refused.error) == (413, True), (headers, refused)
        assert not infer.requests
        length = {"inference-header-content-length": str(len(binary))}
        for headers in (length, {**length, "content-encoding": "gzip"}):
            whole = binary + bytes(1024)
            sent = gzip.compress(whole) if "content-encoding" in headers else whole
            assert node.ask("POST", path, sent, headers).status == 200
        for _ in range(2):  # the same head again, of which the facts are known
            assert node.infer_json(ROW).status == 200
            row = gzip.compress(json.dumps(ROW).encode())
            assert node.ask("POST", path, row, {"content-encoding": "gzip"}).status == 200
        assert node.ask("POST", "/v2/repository/index", b" " * 401).status == 413


def test_statistics_keep_the_time_of_successes_and_of_failures_apart() -> None:
    counts = ArmCounts(
        dispatched=9, ok=2, invalid=1, failed=1, timed_out=2, cancelled=1, lost=2, not_ok_ns=4_000_000_000,
        total=Histogram((7, *[0] * (BUCKETS - 1)), 4.25),
    )  # fmt: skip
    (entry,) = statistics([(ArmKey("iris", "2", 1, 0, 0), counts)])["model_stats"]
    assert entry["inference_stats"]["success"] == {"count": 2, "ns": 250_000_000}
    assert entry["inference_stats"]["fail"] == {"count": 7, "ns": 4_000_000_000}


def test_statistics_count_requests_and_rows(node: Node) -> None:
    two = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [1.0] * 8}]}
    assert node.infer_json(ROW).status == node.infer_json(two).status == 200
    for path in ("/v2/models/stats", "/v2/models/iris/stats", "/v2/models/iris/versions/2/stats"):
        (entry,) = node.ask("GET", path).json["model_stats"]
        assert (entry["name"], entry["version"]) == ("iris", "2")
        assert (entry["inference_count"], entry["execution_count"]) == (3, 2)
        assert entry["inference_stats"]["success"]["count"] == 2
        assert entry["inference_stats"]["compute_infer"] == {"count": 2, "ns": 2000}
    assert node.ask("GET", "/v2/models/iris/versions/1/stats").json == {"model_stats": []}
    assert node.ask("GET", "/v2/models/none/stats").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v3", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/iris/weights", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/%ff", 404),
        ("GET", "/v2/models/a%2Fb", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/iris/versions/9", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models/iris/versions/9/infer", 404),
        ("GET", "/v2/logging", 501),
        ("POST", "/v2/trace/setting", 501),
        ("GET", "/v2/models/iris/trace/setting", 501),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/models/iris/generate", 501),
    ],
)
def test_paths_that_lead_nowhere(node: Node, method: str, path: str, status: int) -> None:
    answer = node.ask(method, path, json.dumps(ROW).encode() if method == "POST" else b"")
    assert answer.status == status
    assert answer.error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/iris/infer", "POST"),
        ("PUT", "/v2/models/iris/infer", "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("POST", "/v2/models/iris", "GET, HEAD"),
        ("DELETE", "/v2", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_which_are_right(node: Node, method: str, path: str, allowed: str) -> None:
    answer = node.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.error


def test_an_infer_answer_names_model_version_id_and_request(node: Node, infer: DirectInfer) -> None:
    answer = node.infer_json(ROW | {"id": 'my "id"'})
    assert answer.status == 200
    assert answer.json["id"] == 'my "id"'
    assert (answer.json["model_name"], answer.json["model_version"]) == ("iris", "2")
    label, probabilities = answer.json["outputs"]
    assert label == {"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}
    assert probabilities["shape"] == [1, 3] and abs(sum(probabilities["data"]) - 1) < 1e-6
    assert parse_request_id(answer.headers["interlock-request-id"].encode()).sequence == 1
    assert infer.requests[0].client_id == 'my "id"'
    assert "id" not in node.infer_json(ROW).json
    assert (
        node.ask("POST", "/v2/models/iris/versions/1/infer", json.dumps(ROW).encode()).json["model_version"]
        == "1"
    )


def test_only_requested_outputs_leave_in_the_order_asked(node: Node, infer: DirectInfer) -> None:
    wanted = [{"name": "probabilities"}, {"name": "label", "parameters": {"binary_data": True}}]
    answer = node.infer_json(ROW | {"outputs": wanted})
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.body[:length])
    assert [output["name"] for output in head["outputs"]] == ["probabilities", "label"]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert answer.body[length:] == bytes(8)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert infer.requests[0].outputs is None
    one = node.infer_json(ROW | {"outputs": [{"name": "label"}]})
    assert [output["name"] for output in one.json["outputs"]] == ["label"]
    assert infer.requests[1].outputs == ("label",)


@pytest.mark.parametrize(
    ("headers", "parameters", "timeout_s", "priority"),
    [
        ({}, None, 10, 1),
        ({"x-request-timeout-ms": "250.5"}, None, 0.2505, 1),
        ({}, {"timeout": 2_000_000}, 2, 1),
        ({}, {"timeout": 0, "priority": 0}, 10, 1),
        ({"x-request-timeout-ms": "500"}, {"timeout": 2_000_000}, 0.5, 1),
        ({"x-request-timeout-ms": "5000"}, {"timeout": 2_000_000}, 2, 1),
        ({"x-request-timeout-ms": "999999999"}, None, 300, 1),
        ({}, {"timeout": 10**30}, 10, 1),
        ({"x-interlock-priority": "0"}, None, 10, 0),
        ({"x-interlock-priority": "1"}, {"priority": 1}, 10, 1),
        ({}, {"priority": 1}, 10, 0),
        ({}, {"priority": 7}, 10, 1),
    ],
)
def test_deadline_and_priority(
    node: Node, infer: DirectInfer, headers: dict[str, str], parameters: Any, timeout_s: float, priority: int
) -> None:
    answer = node.infer_json(ROW | {"parameters": parameters}, headers=headers)
    assert answer.status == 200, answer
    (request,) = infer.requests
    assert request.deadline_s - request.received_s == pytest.approx(timeout_s)
    assert request.priority == priority


def test_unit_tenant_and_segment_come_from_headers_and_the_trace_is_passed_on(
    node: Node, infer: DirectInfer
) -> None:
    headers = {
        "x-interlock-unit": "u-1",
        "x-interlock-tenant": "t",
        "X-Interlock-Segment": "",
        "traceparent": TRACE,
    }
    answer = node.infer_json(ROW, headers=headers)
    (request,) = infer.requests
    assert (request.unit, request.tenant, request.segment) == (b"u-1", b"t", None)
    assert answer.headers["traceparent"] == TRACE
    assert node.infer_json({}, headers={"traceparent": TRACE}).headers["traceparent"] == TRACE
    assert "traceparent" not in node.infer_json(ROW, headers={"traceparent": "no-trace"}).headers


def test_a_full_queue_refuses_before_the_body_is_read(node: Node, infer: DirectInfer) -> None:
    infer.full = True
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
        client.sendall(b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n")
        said = client.recv(4096)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 2\r\n" in said
    assert not infer.requests


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("breaks", 500, "the model raised ValueError: no"),
        ("lies", 500, "output 'label': the model gave int8, its signature says INT64"),
        ("forgets", 500, "output 'probabilities' is missing; the model gave ['label']"),
    ],
)
def test_a_models_own_fault_is_500_with_the_request_id(
    node: Node, model: str, status: int, words: str
) -> None:
    answer = node.infer_json(ROW, model)
    assert (answer.status, answer.error) == (status, words)
    parse_request_id(answer.headers["interlock-request-id"].encode())


def test_unavailable_says_when_to_try_again(node: Node, infer: DirectInfer) -> None:
    def not_yet(inputs: Any) -> Any:
        raise NotReady("version 1 is loading", retry_after_s=0.01)

    infer.add(version("late"), not_yet)
    answer = node.infer_json(ROW, "late")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_streaming_version_is_not_offered_here(node: Node, infer: DirectInfer) -> None:
    streams = msgspec.structs.replace(
        version("streams"),
        capabilities=msgspec.structs.replace(version("streams").capabilities, streaming=True),
    )
    infer.add(streams, lambda inputs: {})
    answer = node.infer_json(ROW, "streams")
    assert answer.status == 501 and "answers in a stream" in answer.error
    assert not infer.requests


def test_whatever_a_model_returns_its_request_is_answered(node: Node, infer: DirectInfer) -> None:
    infer.add(version("odd"), lambda inputs: {"label": None, "probabilities": None})  # type: ignore[dict-item]
    answer = node.infer_json(ROW, "odd")
    assert answer.status == 500 and "cannot be encoded: AttributeError" in answer.error


def test_a_client_that_leaves_cancels_its_request_and_no_other(node: Node, infer: DirectInfer) -> None:
    infer.holds = True
    body = json.dumps(ROW).encode()
    head = b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    leaving = socket.create_connection(("127.0.0.1", node.port), timeout=20)
    leaving.sendall(head + body)
    wait_until(lambda: len(infer.held) == 1)
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as staying:
        staying.sendall(head + body)
        wait_until(lambda: len(infer.held) == 2)
        leaving.close()
        wait_until(lambda: infer.held[0].is_cancelled)
        assert not infer.held[1].is_cancelled
        for held in infer.held:
            node.loop.call_soon_threadsafe(held.release)
        assert staying.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_reading_a_version_again_from_a_letter_makes_no_new_codec(node: Node, infer: DirectInfer) -> None:
    assert node.infer_json(ROW).status == 200
    kept = len(node.app._codecs)
    for _ in range(300):
        infer.add(version("iris", "2"), iris)  # an equal Version, as each Desired brings one
        assert node.infer_json(ROW).status == 200
    assert len(node.app._codecs) == kept


def test_pipelined_answers_keep_their_order(node: Node, infer: DirectInfer) -> None:
    infer.holds = True
    requests = b""
    for number in range(3):
        body = json.dumps(ROW | {"id": str(number)}).encode()
        requests += b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
        client.sendall(requests)
        wait_until(lambda: len(infer.held) == 3)
        for held in reversed(infer.held):
            node.loop.call_soon_threadsafe(held.release)
        said = b""
        while said.count(b'"id":') < 3:
            said += client.recv(65536)
    assert [said.index(b'"id":"%d"' % number) for number in range(3)] == sorted(
        said.index(b'"id":"%d"' % number) for number in range(3)
    )


def test_concurrent_clients_get_their_own_answers(node: Node) -> None:
    rng = np.random.default_rng(3)
    rows = rng.random((60, 4)).astype(np.float32)

    def call(index: int) -> Answer:
        entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": rows[index].tolist()}
        return node.infer_json({"id": str(index), "inputs": [entry]})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(60)))
    for index, answer in enumerate(answers):
        assert answer.json["id"] == str(index)
        odds = np.exp(rows[index, :3].astype(np.float64))
        assert answer.json["outputs"][1]["data"] == pytest.approx(odds / odds.sum(), abs=1e-6)
    assert len({answer.headers["interlock-request-id"] for answer in answers}) == 60


def test_a_call_answers_once_and_lets_go_of_its_exchange() -> None:
    class Recorder:
        answers = 0

        def respond(self, status: int, headers: bytes, body: Any) -> None:
            self.answers += 1

    exchange = Recorder()
    call = Call(exchange, None, None, None, b"")  # type: ignore[arg-type]
    call.fail(PredictFailed("first"), b"")
    call.fail(PredictFailed("second"), b"")
    assert exchange.answers == 1
    seen = weakref.ref(exchange)
    del exchange
    assert seen() is None, "exchange, ticket and call must not form a cycle that only the collector ends"
