"""What a model sees of what `interlock predict` is given, and how its answer is written: through the server's
own codec."""

import json
from typing import Any

import numpy as np
import pytest

from interlock.cli.payload import data_of
from interlock.cli.predict import _written
from interlock.client.inputs import inputs_of
from interlock.client.message import JSON_LENGTH, Reply, decode, encode
from interlock.client.views import Metadata, Tensor
from interlock.codec.v2infer import Codec
from interlock.core.model import Array, Signature, TensorSpec
from interlock.core.request import Outputs, Response
from interlock.core.table import MISSING


def echo(data: Any, datatype: str, answer: Array | None = None) -> tuple[Array, dict[str, Any]]:
    """What a model with one input and one output of a datatype sees of `data`, and what is written of its
    answer (the same, unless `answer` is given)."""
    metadata = Metadata("echo", (Tensor("x", datatype, (-1, 2)),), (Tensor("y", datatype, (-1, 2)),))
    request = encode(inputs_of(data_of(data, metadata), metadata), None, "mine")
    signature = Signature(
        (TensorSpec("x", datatype, (-1, 2)),),
        (TensorSpec("y", datatype, (-1, 2)), TensorSpec("n", "INT64", (-1,))),
    )
    length = int(dict(request.headers)[JSON_LENGTH])
    inputs, _, answering, client_id, _ = Codec("echo", "1", signature).decode(b"".join(request.parts), length)
    seen = np.asarray(inputs["x"])
    outputs = {"y": seen if answer is None else answer, "n": np.arange(len(seen))}
    text, binary = answering.answer(Response(b"1", "echo", "1", Outputs(outputs)), client_id)
    assert binary is not None
    reply = Reply(200, [(JSON_LENGTH, b"%d" % len(text))], 10**6)
    reply.take(b"".join([text, *map(bytes, binary)]))
    return seen, _written(decode(reply), metadata)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32"])
def test_floats_of_any_size_go_and_come(datatype: str) -> None:
    seen, answer = echo([[1.5, -2.0], [0.0, 96.0]], datatype)
    assert seen.tolist() == [[1.5, -2.0], [0.0, 96.0]]
    assert answer == {
        "model_name": "echo",
        "model_version": "1",
        "outputs": [
            {"name": "y", "datatype": datatype, "shape": [2, 2], "data": [1.5, -2.0, 0.0, 96.0]},
            {"name": "n", "datatype": "INT64", "shape": [2], "data": [0, 1]},
        ],
        "id": "mine",
    }
    assert list(answer["outputs"][0]) == ["name", "datatype", "shape", "data"]
    assert echo([["1.5", "2"]], datatype)[0].tolist() == [[1.5, 2.0]]  # of a CSV file


def test_texts_need_not_be_utf_8_and_may_be_missing() -> None:
    answered = np.array([[b"\xff\n", "ä".encode()], [MISSING, b""]], object)
    seen, answer = echo([["ä", "b"], [None, "None"]], "BYTES", answered)
    assert seen.tolist() == [["ä".encode(), b"b"], [MISSING, b"None"]]
    assert answer["outputs"][0]["data"] == ["\\xff\n", "ä", None, ""]
    assert json.loads(json.dumps(answer)) == answer
