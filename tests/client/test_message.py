"""The bytes of requests and answers: as the server's codec reads and writes them, in place, and bounded."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.client import failure, message, session
from interlock.client.inputs import Sent
from interlock.client.message import PIECE_BYTES, Body, Reply, decode, encode
from interlock.client.prediction import Prediction
from interlock.codec.v2infer import Codec
from interlock.core.errors import InvalidRequest, NodeUnreachable, UnknownOutput
from interlock.core.model import DATATYPES, Array, Signature, TensorSpec
from interlock.wire import headers as wire

MOST = 1 << 20


def reply(text: bytes, tensors: bytes | None = None, **headers: str) -> Reply:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if tensors is not None:
        sent.append((b"Inference-Header-Content-Length", b"%d" % len(text)))
    made = Reply(200, sent, MOST)
    made.take(text + (tensors or b""))
    return made


def answered(*outputs: dict[str, Any], tensors: bytes | None = None, **headers: str) -> Prediction:
    text = json.dumps({"model_name": "m", "model_version": "3", "outputs": outputs, "id": "mine"}).encode()
    return decode(reply(text, tensors, **headers))


def values(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([[b"a", b"\xff\xfe"], [b"", "ä".encode()]], object)
    return np.array([[0, 1], [1, 100]]).astype(DATATYPES[datatype])


def test_the_headers_are_those_of_the_wire() -> None:
    assert (message.JSON_LENGTH, message.REQUEST_ID) == (wire.JSON_LENGTH, wire.REQUEST_ID)
    assert failure.ERROR == wire.ERROR
    assert (session.UNIT, session.TENANT, session.SEGMENT) == (wire.UNIT, wire.TENANT, wire.SEGMENT)
    assert (session.PRIORITY, session.TIMEOUT_MS) == (wire.PRIORITY, wire.TIMEOUT_MS)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_codec_reads_what_is_written_and_its_answer_is_read(datatype: str) -> None:
    spec = TensorSpec("a", datatype, (-1, -1))
    codec = Codec("m", "3", Signature((spec,), (TensorSpec("b", datatype, (-1, -1)),)))
    array = values(datatype)
    request = encode([Sent("a", datatype, array)], None, "mine")
    length = int(dict(request.headers)[message.JSON_LENGTH])
    assert length % 8 == 0
    inputs, rows, answer, client_id, _ = codec.decode(b"".join(request.parts), length)
    assert (rows, client_id) == (2, "mine")
    read = inputs["a"]
    assert isinstance(read, np.ndarray)
    assert read.tolist() == array.tolist()
    text, binary = answer.encode({"b": array}, client_id)
    assert binary is not None
    prediction = decode(reply(text, b"".join(binary), interlock_request_id="7-7"))
    assert (prediction.model, prediction.version, prediction.request_id) == ("m", "3", "7-7")
    got = prediction["b"]
    wanted = [["a", b"\xff\xfe"], ["", "ä"]] if datatype == "BYTES" else array.tolist()
    assert got.tolist() == wanted and got.dtype == DATATYPES[datatype]


@pytest.mark.parametrize("name", ["b", "bb", "bbb", "bbbbbbb"])
def test_the_first_tensor_of_an_answer_is_read_where_it_lies(name: str) -> None:
    outputs: dict[str, Any] = {
        "name": name,
        "datatype": "FP64",
        "shape": [2],
        "parameters": {"binary_data_size": 16},
    }
    text = json.dumps({"outputs": [outputs]}).encode()
    came = reply(text, np.array([1.5, 2.5]).tobytes())
    array = decode(came)[name]
    assert array.tolist() == [1.5, 2.5] and array.flags.aligned
    assert np.shares_memory(array, np.frombuffer(came.body, np.uint8))
    array[0] = 3.0  # it is the caller's own


def test_an_input_that_is_row_major_is_not_copied() -> None:
    array = np.ones((3, 4), np.float32)
    parts = encode([Sent("a", "FP32", array)], ["b"], None).parts
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), array)
    assert json.loads(bytes(parts[0]))["outputs"] == [{"name": "b", "parameters": {"binary_data": True}}]


def test_texts_and_missing_ones() -> None:
    output: dict[str, Any] = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "ä"]}
    assert answered(output)["t"].tolist() == ["a", "ä"]
    raw = b"\1\0\0\0\xff" + b"\1\0\0\0b"
    output = {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    assert answered(output, tensors=raw)["t"].tolist() == [None, "b"]


def test_json_with_tokens_that_are_none() -> None:
    text = (
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[3],"data":[NaN,1,-Infinity]}]}'
    )
    assert str(decode(reply(text))["y"].tolist()) == "[nan, 1.0, -inf]"


FP32 = {"name": "y", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("output", "tensors"),
    [
        ({**FP32, "data": [1]}, None),
        ({**FP32, "data": ["a", "b"]}, None),
        ({**FP32, "shape": [-2, -1], "data": [1, 2]}, None),
        ({**FP32, "shape": [0] * 65, "data": []}, None),
        ({**FP32, "datatype": "FP8", "data": [1, 2]}, None),
        ({**FP32, "datatype": "FP8", "parameters": {"binary_data_size": 8}}, bytes(8)),
        ({**FP32, "datatype": "INT8", "data": [1, 2000]}, None),
        ({"name": "t", "datatype": "BYTES", "shape": [2], "data": [["a"], "b", "c"]}, None),
        ({**FP32, "parameters": {"binary_data_size": 8}}, bytes(7)),
        ({**FP32, "parameters": {"binary_data_size": -1}}, bytes(7)),
        ({**FP32, "parameters": {"binary_data_size": "8"}}, bytes(8)),
        ({**FP32, "shape": [2**62, 2**62], "parameters": {"binary_data_size": 8}}, bytes(8)),
        ({"name": "y"}, None),
    ],
)
def test_an_answer_that_is_none_is_called_so(output: dict[str, Any], tensors: bytes | None) -> None:
    with pytest.raises(NodeUnreachable, match="the answer is none of V2"):
        answered(output, tensors=tensors)


@pytest.mark.parametrize("length", ["-1", "x", "9999", ""])
def test_a_length_of_json_that_is_none(length: str) -> None:
    with pytest.raises(NodeUnreachable, match="none of V2"):
        decode(reply(b'{"outputs":[]}', inference_header_content_length=length))


@given(st.binary(max_size=60), st.none() | st.integers(-5, 70))
def test_garbage_is_never_anything_else(text: bytes, length: int | None) -> None:
    came = Reply(200, [] if length is None else [(message.JSON_LENGTH, b"%d" % length)], MOST)
    came.take(text)
    with pytest.raises(NodeUnreachable):
        decode(came)


def test_an_answer_that_is_too_long_is_refused_before_and_while_it_comes() -> None:
    with pytest.raises(NodeUnreachable, match="the limit is 10: raise max_answer_bytes"):
        Reply(200, [(b"Content-Length", b"11")], 10)
    endless = Reply(200, [], 10)
    endless.take(b"0123456789")
    with pytest.raises(NodeUnreachable, match="11 bytes or more"):
        endless.take(b"0")


def test_a_text_that_is_none_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="input 'a': element 0 is of type int"):
        encode([Sent("a", "BYTES", np.array([1], object))], None, None)


def test_a_body_goes_in_pieces_and_knows_when_all_of_it_went() -> None:
    large = bytes(range(256)) * (PIECE_BYTES // 100)
    body = Body([b"head", large, b""])
    pieces = iter(body)
    assert next(pieces) == b"head" and not body.whole
    rest = list(pieces)
    assert b"".join(rest) == large and max(map(len, rest)) == PIECE_BYTES
    assert body.whole

    async def read() -> list[bytes]:
        return [piece async for piece in body]

    assert b"".join(asyncio.run(read())) == b"head" + large


def test_outputs_by_name_alone_and_as_a_frame() -> None:
    outputs = {
        "label": np.array([1, 2]),
        "score": np.array([[0.1], [0.2]]),
        "p": np.array([[1, 2], [3, 4]]),
        "image": np.zeros((2, 2, 2)),
    }
    prediction = Prediction("m", "3", outputs)
    frame = prediction.frame()
    assert list(frame.columns) == ["label", "score", "p_0", "p_1", "image"]
    assert frame["p_1"].tolist() == [2, 4] and frame["image"][1].shape == (2, 2)
    with pytest.raises(UnknownOutput, match="gave no output 'lable'; it gave label, score"):
        prediction["lable"]
    with pytest.raises(UnknownOutput, match="4 outputs: name one of label"):
        _ = prediction.array
    assert Prediction("m", "3", {"y": outputs["label"]}).array is outputs["label"]
