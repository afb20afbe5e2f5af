"""Both clients against the real server: every call, every kind of error, many at once."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interlock
from interlock.core import errors
from interlock.core.model import Signature, Tensors, TensorSpec
from interlock.core.table import MISSING
from tests.client.both import KINDS, client
from tests.wire.direct import DirectInfer, iris, serving, version
from tests.wire.node import Node, running

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [1.0, 2.0, 3.0, 4.0]])
LABELS = iris({"x": ROWS.astype(np.float32)})["label"].tolist()
MIXED = Signature(
    (TensorSpec("age", "FP32", (-1, 1)), TensorSpec("sex", "BYTES", (-1, 1))),
    (TensorSpec("said", "BYTES", (-1,)),),
    0,
    ("age", "sex"),
)
IMAGE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


def tell(inputs: Tensors) -> Tensors:
    made = np.empty(len(inputs["age"]), object)
    pairs = zip(inputs["age"].ravel(), inputs["sex"].ravel(), strict=True)
    made[:] = [MISSING if sex == MISSING else b"%b %g" % (sex, age) for age, sex in pairs]
    return {"said": made}


@pytest.fixture(scope="module")
def infer() -> DirectInfer:
    infer = serving()
    infer.add(version("mixed", "1", MIXED), tell)
    infer.add(version("image", "1", IMAGE), lambda inputs: {"y": inputs["x"]})
    half = Signature((TensorSpec("x", "FP16", (-1, 2)),), (TensorSpec("y", "BF16", (-1, 2)),))
    infer.add(version("half", "1", half), lambda inputs: {"y": inputs["x"].astype(np.float32)})
    return infer


@pytest.fixture(scope="module")
def node(infer: DirectInfer) -> Iterator[Node]:
    with running(infer) as up:
        yield up


@pytest.fixture(params=KINDS)
def asks(request: pytest.FixtureRequest, node: Node) -> Iterator[Any]:
    with client(request.param, f"http://127.0.0.1:{node.port}") as made:
        yield made


@pytest.mark.parametrize("data", [ROWS, ROWS.tolist(), pd.DataFrame(ROWS), {"x": ROWS}], ids=type)
def test_rows_in_every_form(asks: Any, data: Any) -> None:
    answer = asks.predict("iris", data, version=1, id="mine", unit="u", priority=0)
    assert answer["label"].tolist() == LABELS
    assert answer["probabilities"].dtype == np.float32
    assert (answer.model, answer.version, answer.client_id) == ("iris", "1", "mine")
    assert answer.request_id.startswith("1-0-0-7-")
    assert list(asks.predict("iris", data, outputs=["label"]).outputs) == ["label"]


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"sex": ["m", None], "age": [22.5, 3]}),
        {"sex": ["m", None], "age": [22.5, 3]},
        [{"age": 22.5, "sex": "m"}, {"age": 3}],
        [[22.5, "m"], [3, None]],
    ],
    ids=type,
)
def test_a_table_with_texts_some_of_which_are_missing(asks: Any, data: Any) -> None:
    assert asks.predict("mixed", data).array.tolist() == ["m 22.5", None]


def test_half_precision_both_ways(asks: Any) -> None:
    answer = asks.predict("half", [[1.5, -2.0]])
    assert answer.array.tolist() == [[1.5, -2.0]] and answer.array.dtype == np.float32


def test_twenty_megabytes_both_ways(asks: Any) -> None:
    image = np.arange(5_000_000, dtype=np.float32).reshape(50, -1)
    answer = asks.predict("image", image, timeout_s=60).array
    assert answer.flags.aligned and np.array_equal(answer, image)


@pytest.mark.parametrize(
    ("model", "data", "kind", "said"),
    [
        ("iris", [[1, 2]], errors.ShapeMismatch, "the signature wants"),
        ("nope", [[1, 2]], errors.ModelNotFound, "model 'nope' is unknown"),
        ("breaks", ROWS, errors.PredictFailed, "the model raised ValueError: no"),
        ("lies", ROWS, errors.OutputMismatch, "its signature says"),
    ],
)
def test_errors_are_what_they_were_on_the_server(
    asks: Any, model: str, data: Any, kind: type[errors.InterlockError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        asks.predict(model, data)
    assert (caught.value.request_id is not None) is (model in ("breaks", "lies"))


def test_what_else_can_be_asked(asks: Any, infer: DirectInfer) -> None:
    with pytest.raises(errors.VersionNotFound):
        asks.predict("iris", ROWS, version=9)
    with pytest.raises(errors.UnknownOutput):
        asks.predict("iris", ROWS, outputs=["lable"])
    assert asks.is_ready() and asks.is_ready("iris") and not asks.is_ready("nope")
    assert {"iris", "broken"} <= {status.name for status in asks.models()}
    metadata = asks.metadata("iris", 2)
    assert metadata.inputs[0].shape == (-1, 4) and metadata.side_effect_free
    request_id = asks.predict("iris", ROWS).request_id
    infer.kept.clear()
    asks.feedback(request_id, "sold", True)
    assert asks.feedback_many([(request_id, "stars", stars) for stars in range(1200)]) == 1200
    assert infer.kept[0].name == "sold" and len(infer.kept) == 1201
    with pytest.raises(errors.InvalidRequest, match="want a finite number|feedback"):
        asks.feedback(request_id, "stars", float("nan"))


def test_a_full_server_is_overloaded(asks: Any, infer: DirectInfer) -> None:
    asks.predict("iris", ROWS)
    infer.full = True
    try:
        with pytest.raises(errors.Overloaded, match="the queue is full") as caught:
            asks.predict("iris", ROWS, timeout_s=0.5)
    finally:
        infer.full = False
    assert caught.value.retry_after_s == 2.0 and caught.value.request_id is None


@pytest.mark.slow
def test_fifty_threads_share_one_client(node: Node) -> None:
    with interlock.Client(f"http://127.0.0.1:{node.port}") as shared, ThreadPoolExecutor(50) as pool:

        def ask(at: int) -> bool:
            rows = np.full((1, 2), at, np.float32)
            return bool((shared.predict("image", rows, timeout_s=60).array == at).all())

        assert all(pool.map(ask, range(500)))


@pytest.mark.slow
async def test_two_hundred_tasks_share_one_client_and_some_leave(node: Node) -> None:
    async with interlock.AsyncClient(f"http://127.0.0.1:{node.port}", connections=20) as shared:

        async def ask(at: int) -> float:
            answer = await shared.predict("image", np.full((1, 2), at, np.float32), timeout_s=60)
            return float(answer.array[0, 0])

        tasks = [asyncio.ensure_future(ask(at)) for at in range(200)]
        await tasks[0]
        for task in tasks[50:60]:
            task.cancel()
        came = await asyncio.gather(*tasks, return_exceptions=True)
        for at, value in enumerate(came):
            left = isinstance(value, asyncio.CancelledError) and 50 <= at < 60
            assert left or value == at
        assert await ask(7) == 7
