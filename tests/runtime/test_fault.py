"""What a fault does to a model: to which rows, the same in every batch, and to no others."""

from typing import Any

import msgspec
import numpy as np
import pytest

from interlock.core.fault import Fault, Kind
from interlock.core.model import Array, Signature, Tensors, TensorSpec, Version
from interlock.runtime import fault as of
from interlock.runtime.catalog import with_fault
from interlock.runtime.fault import FaultInjected, flipped, marked, with_nan

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),),
    (TensorSpec("label", "INT64", (-1,)), TensorSpec("score", "FP32", (-1, 2))),
)
ROWS = np.random.default_rng(1).standard_normal((4000, 3)).astype(np.float32)


class Model:
    """Answers what can be told apart; remembers that it was closed."""

    closed = False

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        rows = len(inputs["x"])
        found: Tensors = {
            "label": np.arange(rows),
            "score": np.tile(np.array([0.25, 0.75], np.float32), (rows, 1)),
        }
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        self.closed = True


def a_version(kind: Kind | None, level: float = 0.1, **more: Any) -> Version:
    fault = None if kind is None else Fault(kind, level)
    return Version("m:selftest", "2", "sha256:" + "0" * 64, "onnx", "", SIGNATURE, fault=fault, **more)


def marks(fault: Fault, rows: Array = ROWS) -> Array:
    return marked({"x": rows}, fault)


def test_without_a_fault_it_is_the_model_itself() -> None:
    model = Model()
    assert with_fault(model, a_version(None)) is model


@pytest.mark.parametrize("level", [0.02, 0.3, 1.0])
def test_the_share_of_marked_rows_is_the_level(level: float) -> None:
    share = float(marks(Fault("fail", level)).mean())
    assert abs(share - level) < 4 * (level * (1 - level) / len(ROWS)) ** 0.5 + 1e-9


def test_a_row_is_marked_alone_as_in_any_batch_and_anew_with_another_seed() -> None:
    fault = Fault("fail", 0.1)
    alone = np.concatenate([marks(fault, ROWS[k : k + 1]) for k in range(200)])
    assert np.array_equal(alone, marks(fault)[:200]) and alone.any() and not alone.all()
    assert np.array_equal(marks(fault, ROWS[::-1]), marks(fault)[::-1])
    again = marks(msgspec.structs.replace(fault, seed=1))
    assert 0.005 < float((again & marks(fault)).mean()) < 0.02  # as if drawn on its own: .1 * .1


def test_every_input_counts_and_texts_are_told_apart() -> None:
    fault = Fault("fail", 0.5)
    texts = np.array([[b"ab", b"c"], [b"a", b"bc"]] * 200, object)
    numbers = np.arange(400, dtype=np.int64)
    both = marked({"a": texts, "b": numbers}, fault)
    assert 120 < both.sum() < 280, "the numbers tell the rows apart"
    assert np.array_equal(marked({"b": numbers, "a": texts}, fault), both)
    as_strings = np.vectorize(bytes.decode, otypes=[object])(texts)
    assert np.array_equal(marked({"a": as_strings, "b": numbers}, fault), both)
    seeds = [marked({"a": texts[:2]}, msgspec.structs.replace(fault, seed=seed)) for seed in range(40)]
    assert any(one[0] != one[1] for one in seeds)


def test_a_request_without_rows_is_one() -> None:
    seen = [marked({"x": row}, Fault("nan", 0.5), has_rows=False) for row in ROWS[:200]]
    assert {len(one) for one in seen} == {1} and 60 < sum(one[0] for one in seen) < 140


def test_a_batch_fails_with_one_of_its_rows_and_only_then() -> None:
    model = with_fault(Model(), a_version("fail"))
    hit = marks(Fault("fail", 0.1))
    well, ill = ROWS[~hit], ROWS[hit]
    assert np.array_equal(model.predict({"x": well})["label"], np.arange(len(well)))
    for rows in (ill[:1], np.concatenate([well[:20], ill[:1]])):
        with pytest.raises(FaultInjected):
            model.predict({"x": rows})


@pytest.mark.parametrize("kind", ["flip", "nan"])
def test_only_the_answers_of_marked_rows_change(kind: Kind) -> None:
    found = with_fault(Model(), a_version(kind)).predict({"x": ROWS})
    plain, hit = Model().predict({"x": ROWS}), marks(Fault(kind, 0.1))
    assert {name: array.dtype for name, array in found.items()} == {n: a.dtype for n, a in plain.items()}
    for name, array in found.items():
        assert np.array_equal(array[~hit], plain[name][~hit])
    if kind == "nan":
        assert np.isnan(found["score"][hit]).all() and np.array_equal(found["label"], plain["label"])
    else:
        assert (found["label"][hit] != plain["label"][hit]).all()
        assert (found["score"].argmax(1)[hit] != plain["score"].argmax(1)[hit]).all()


def test_what_was_not_asked_for_is_not_answered() -> None:
    found = with_fault(Model(), a_version("flip", 1.0)).predict({"x": ROWS[:3]}, ("score",))
    assert list(found) == ["score"]


def test_a_model_without_rows_changes_as_a_whole() -> None:
    signature = msgspec.structs.replace(SIGNATURE, batch_axis=None)
    version = msgspec.structs.replace(a_version("nan", 1.0), signature=signature)
    assert np.isnan(with_fault(Model(), version).predict({"x": ROWS[:3]})["score"]).all()


def test_slow_waits_so_many_times_what_the_batch_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept = [0.0], list[float]()

    class Slow(Model):
        took_s = 0.02

        def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
            now_s[0] += self.took_s
            return super().predict(inputs, outputs)

    monkeypatch.setattr(of, "time", type("Clock", (), {"monotonic": lambda: now_s[0], "sleep": slept.append}))
    inner = Slow()
    model = with_fault(inner, a_version("slow", 3.0))
    for inner.took_s in (0.02, 1e-6, 10.0):
        model.predict({"x": ROWS[:1]})
    assert slept == pytest.approx([0.04, 2 * of.LEAST_SLOW_S, of.MOST_SLOW_S])


def test_it_is_closed_with_its_wrapper() -> None:
    model = Model()
    with_fault(model, a_version("fail")).close()
    assert model.closed


@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 1, 7, 255], np.uint8),
        np.array([-3, 0, 2**62], np.int64),
        np.array([True, False]),
        np.array([b"", b"spam"], object),
        np.array(["", "spam"], object),
        np.array([0.0, -0.5, 1e6], np.float32),
        np.array([[0.5, 0.5], [0.0, 0.0], [0.2, 0.8]], np.float64),
        np.array([1.0, 2.0], np.float16),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_is_flipped_differs_in_every_row_and_has_the_same_form(array: Array) -> None:
    other = flipped(array)
    assert other.dtype == array.dtype and other.shape == array.shape
    assert (other != array).reshape(len(array), -1).any(axis=1).all()
    same = with_nan(array)
    assert same.dtype == array.dtype and same.shape == array.shape
