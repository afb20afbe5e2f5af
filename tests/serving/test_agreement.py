"""What counts as agreeing, and as sound, in the answers of two versions to the same requests."""

from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.model import Signature, TensorSpec
from interlock.core.route import Mirror, Range
from interlock.core.state import PairCounts
from interlock.serving.agreement import Agreement, Answers
from interlock.serving.block import DISPATCHED, PAIRS

SCORES = TensorSpec("scores", "FP32", (-1, 2))
LABEL = TensorSpec("label", "INT64", (-1,))
TEXT = TensorSpec("text", "BYTES", (-1,))


def judged(
    outputs: tuple[TensorSpec, ...], pairs: list[tuple[Answers, Answers]], **mirror: Any
) -> PairCounts:
    signature = Signature((), outputs)
    cells = [0] * (DISPATCHED + 1)
    agreement = Agreement(Mirror(1, reverse=1.0, **mirror), signature, signature)
    agreement.count(pairs, cells)
    assert all(type(cell) is int for cell in cells)
    return PairCounts(*cells[PAIRS:DISPATCHED])


def scores(*rows: list[float]) -> Answers:
    return {"scores": np.array(rows, np.float32)}, 0, len(rows)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "agrees"),
    [
        ([0.5, 0.5], [0.5, 0.5], True),
        ([0.5, 0.5], [0.5005, 0.4995], True),
        ([0.5, 0.5], [0.5, 0.502], False),
        ([1000.5, 0.0], [1000.0, 0.0], True),  # relative where it is above 1
        ([1002.0, 0.0], [1000.0, 0.0], False),
        ([nan, inf], [nan, inf], True),
        ([nan, 0.0], [0.0, 0.0], False),
        ([inf, 0.0], [-inf, 0.0], False),
        ([inf, 0.0], [1.0, 0.0], False),
        ([1.0, 0.0], [inf, 0.0], False),
    ],
)
def test_floats_agree_within_the_tolerance(
    candidate: list[float], incumbent: list[float], agrees: bool
) -> None:
    counts = judged((SCORES,), [(scores(candidate), scores(incumbent))])
    assert (counts.agreed, counts.disagreed) == (int(agrees), int(not agrees))


def test_where_there_is_a_label_it_alone_decides() -> None:
    one = {"scores": np.array([[0.9, 0.1]], np.float32), "label": np.array([0])}
    other = {"scores": np.array([[0.6, 0.4]], np.float32), "label": np.array([0])}
    third = {"scores": np.array([[0.6, 0.4]], np.float32), "label": np.array([1])}
    outputs = (SCORES, LABEL)
    assert judged(outputs, [((one, 0, 1), (other, 0, 1))]) == PairCounts(agreed=1)
    assert judged(outputs, [((other, 0, 1), (third, 0, 1))]) == PairCounts(disagreed=1)


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_texts_agree_by_their_bytes(kind: str) -> None:
    words = {"text": np.array(["cat", "dög"] if kind != "S" else [b"cat", "dög".encode()], kind)}
    same = {"text": np.array([b"cat", "dög".encode()], np.object_)}
    other = {"text": np.array([b"cat", b"dog"], np.object_)}
    assert judged((TEXT,), [((words, 0, 2), (same, 0, 2))]) == PairCounts(agreed=1)
    pairs: list[tuple[Answers, Answers]] = [
        ((words, 0, 1), (other, 0, 1)), ((words, 1, 2), (other, 1, 2))
    ]  # fmt: skip
    assert judged((TEXT,), pairs) == PairCounts(agreed=1, disagreed=1)


def test_an_output_that_the_client_did_not_ask_for_is_not_compared() -> None:
    assert judged((SCORES, LABEL), [(scores([1.0, 2.0]), scores([1.0, 9.0]))]) == PairCounts()


def test_other_shapes_disagree() -> None:
    wide: Answers = ({"scores": np.zeros((1, 3), np.float32)}, 0, 1)
    assert judged((SCORES,), [(wide, scores([0.0, 0.0]))]).disagreed == 1


def test_outputs_without_rows_are_compared_whole() -> None:
    table: Answers = ({"scores": np.zeros((2, 2), np.float32)}, 0, None)
    other: Answers = ({"scores": np.array([[0, 0], [0, 1]], np.float32)}, 0, None)
    assert judged((SCORES,), [(table, table)]).agreed == 1
    assert judged((SCORES,), [(table, other)]).disagreed == 1


@pytest.mark.parametrize(
    ("candidate", "incumbent", "expected"),
    [
        ([0.0, 1.0], [0.0, 1.0], PairCounts(agreed=1)),
        ([0.0, 1.5], [0.0, 1.0], PairCounts(disagreed=1, unsound_worse=1)),
        ([0.0, 1.0], [-0.5, 1.0], PairCounts(disagreed=1, unsound_better=1)),
        ([nan, 1.0], [nan, 1.0], PairCounts(agreed=1, unsound_both=1)),
        ([0.0, -inf], [0.0, 1.0], PairCounts(disagreed=1, unsound_worse=1)),
    ],
)
def test_what_is_not_finite_or_out_of_range_is_unsound(
    candidate: list[float], incumbent: list[float], expected: PairCounts
) -> None:
    ranges = (Range("scores", 0.0, 1.0), Range("absent", 0.0), Range("label", 0.0))
    assert judged((SCORES,), [(scores(candidate), scores(incumbent))], ranges=ranges) == expected


def test_labels_have_ranges_too_and_may_be_open() -> None:
    one: Answers = ({"label": np.array([-1])}, 0, 1)
    assert judged((LABEL,), [(one, one)], ranges=(Range("label", greatest=5.0),)).unsound_both == 0
    assert judged((LABEL,), [(one, one)], ranges=(Range("label", least=0.0),)).unsound_both == 1


VALUES = st.sampled_from([0.0, 1.0, 2.0, nan, inf])


@given(
    requests=st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=3), min_size=1, max_size=8),
    orders=st.tuples(st.randoms(), st.randoms()),
)
def test_pairs_of_two_batches_are_judged_as_each_would_be_alone(
    requests: list[list[tuple[float, float]]], orders: tuple[Any, Any]
) -> None:
    """Whatever the order of the requests in either batch, and however many rows each has."""
    placed: list[list[Answers]] = []
    for side, order in enumerate(orders):
        ranks = list(range(len(requests)))
        order.shuffle(ranks)
        tensors = {"scores": np.zeros((sum(map(len, requests)), 1), np.float32)}
        spans: list[Answers] = [({}, 0, 0)] * len(requests)
        at = 0
        for index in ranks:
            rows = requests[index]
            tensors["scores"][at : at + len(rows), 0] = [row[side] for row in rows]
            spans[index] = tensors, at, at + len(rows)
            at += len(rows)
        placed.append(spans)
    pairs = list(zip(*placed, strict=True))
    alone = PairCounts()
    for pair in pairs:
        alone = alone.merge(judged((SCORES,), [pair]))
    assert judged((SCORES,), pairs) == alone
    assert alone.agreed + alone.disagreed == len(requests)
