"""Tensors that JSON cannot carry go and come as bytes, and look like all others on both ends."""

from typing import Any

import numpy as np
import pytest

from interlock.cli.binary import LENGTH, decode, encode
from interlock.cli.payload import Metadata, Spec, request_of
from interlock.codec.v2infer import Codec
from interlock.core.errors import InputMismatch
from interlock.core.model import Array, Signature, TensorSpec
from interlock.core.request import Outputs, Response


def echo(data: Any, datatype: str, answer: Array | None = None) -> tuple[Array, dict[str, Any]]:
    """What a model with one input and one output of a datatype sees of `data`, and what one sees of its
    answer (the same, unless `answer` is given): through the server's own codec."""
    spec = Spec("x", datatype, (-1, 2))
    metadata = Metadata("echo", (spec,), (Spec("y", datatype, (-1, 2)), Spec("n", "INT64", (-1,))))
    body, headers = encode(request_of(data, metadata), metadata)
    signature = Signature(
        (TensorSpec("x", datatype, (-1, 2)),),
        (TensorSpec("y", datatype, (-1, 2)), TensorSpec("n", "INT64", (-1,))),
    )
    codec = Codec("echo", "1", signature)
    inputs, _, answering, client_id, _ = codec.decode(
        body, int(headers[LENGTH]) if LENGTH in headers else None
    )
    seen = np.asarray(inputs["x"])
    outputs = {"y": seen if answer is None else answer, "n": np.arange(len(seen))}
    text, binary = answering.answer(Response(b"1", "echo", "1", Outputs(outputs)), client_id)
    assert binary is not None
    return seen, decode(b"".join([text, *map(bytes, binary)]), {LENGTH: str(len(text))})


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_go_and_come_as_bytes(datatype: str) -> None:
    seen, answer = echo([[1.5, -2.0], [0.0, 96.0]], datatype)
    assert seen.tolist() == [[1.5, -2.0], [0.0, 96.0]]
    assert answer["outputs"] == [
        {"name": "y", "datatype": datatype, "shape": [2, 2], "data": [1.5, -2.0, 0.0, 96.0]},
        {"name": "n", "datatype": "INT64", "shape": [2], "data": [0, 1]},
    ]
    assert echo([["1.5", "2"]], datatype)[0].tolist() == [[1.5, 2.0]]  # of a CSV file


def test_texts_need_not_be_utf_8() -> None:
    seen, answer = echo([["ä", "b"]], "BYTES", np.array([[b"\xff\n", "ä".encode()]], object))
    assert seen.tolist() == [["ä".encode(), b"b"]]
    assert answer["outputs"][0]["data"] == ["\\xff\n", "ä"]


def test_what_is_no_number_is_refused_by_name() -> None:
    metadata = Metadata("m", (Spec("x", "FP16", (-1, 2)),))
    request = {"inputs": [{"name": "x", "datatype": "FP16", "shape": [1, 2], "data": [{}, 1]}]}
    with pytest.raises(InputMismatch, match="input 'x' wants FP16"):
        encode(request, metadata)


def test_what_json_carries_stays_json_and_wishes_are_kept() -> None:
    iris = Metadata("iris", (Spec("x", "FP32", (-1, 2)),), (Spec("y", "FP32", (-1, 2)),))
    body, headers = encode(request_of([[1, 2]], iris), iris)
    assert headers == {} and b"outputs" not in body
    texts = Metadata(
        "t", (Spec("x", "FP32", (-1, 2)),), (Spec("y", "BYTES", (-1,)), Spec("z", "FP32", (-1,)))
    )
    wish = {**request_of([[1, 2]], texts), "outputs": [{"name": "y", "parameters": {"binary_data": False}}]}
    assert b'"outputs": [{"name": "y", "parameters": {"binary_data": false}}]' in encode(wish, texts)[0]
    assert (
        b'"outputs": [{"name": "y", "parameters": {"binary_data": true}}, {"name": "z"}]'
        in (encode(request_of([[1, 2]], texts), texts)[0])
    )
