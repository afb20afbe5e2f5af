"""The warm-up holds a version's first answer to its signature, on real runtimes and on what answers badly."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from interlock.core.errors import LoadFailed
from interlock.core.model import Capabilities, Signature, Tensors, TensorSpec, Version
from interlock.runtime.catalog import runtime_of
from interlock.serving.warm_up import warm_up
from tests.runtime import models

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
VERSION = Version("m", "1", "sha256:" + "0" * 64, "python", "model.py:Model", Signature((X,), (Y,)))
STREAMING = Capabilities(batchable=False, streaming=True)


class Answers:
    """Gives what it is told to, whole or as parts, and remembers whether its stream was closed."""

    def __init__(self, *answers: object) -> None:
        self.answers = answers
        self.closed = False

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        assert inputs["x"].shape == (1, 2) and not inputs["x"].any()
        return self.answers[0]  # type: ignore[return-value]  # it may be anything

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...] | None = None
    ) -> Generator[Tensors, None, None]:
        try:
            yield from self.answers  # type: ignore[misc]
        finally:
            self.closed = True

    def close(self) -> None:
        """There is nothing to give back."""


def zeros(*shape: int, dtype: str = "f4") -> Tensors:
    return {"y": np.zeros(shape, dtype)}


WRONG = {
    "no dict": ([1], "predict returned list"),
    "no array": ({"y": 1}, "predict returned int for 'y'"),
    "missing": ({"z": np.zeros((1, 2))}, r"predict returned \['z'\], the signature wants 'y'"),
    "dtype": (zeros(1, 2, dtype="f8"), "dtype float64, the signature wants float32"),
    "rank": (zeros(1), "the signature wants 2 axes"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("capabilities", [Capabilities(), STREAMING], ids=["whole", "in parts"])
def test_an_answer_that_does_not_fit_fails_the_load(name: str, capabilities: Capabilities) -> None:
    answer, said = WRONG[name]
    model = Answers(answer)
    with pytest.raises(LoadFailed, match=f"^warm-up failed: .*{said}.*; its libraries may not be those"):
        warm_up(model, replace(VERSION, capabilities=capabilities))


def test_rows_count_where_there_is_a_batch_axis() -> None:
    with pytest.raises(LoadFailed, match="output 'y' has 3 rows for a batch of 1"):
        warm_up(Answers(zeros(3, 2)), VERSION)
    warm_up(Answers(zeros(1, 2)), VERSION)
    warm_up(Answers(zeros(3, 2)), replace(VERSION, signature=Signature((X,), (Y,), None)))


@pytest.mark.parametrize("parts", [(), (zeros(0, 2),), (zeros(5, 2), "never asked for")])
def test_a_stream_may_have_no_part_and_a_part_any_number_of_rows(parts: tuple[object, ...]) -> None:
    model = Answers(*parts)
    warm_up(model, replace(VERSION, capabilities=STREAMING))
    assert model.closed


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in models.LARGE else []) for n in models.MODELS],
)
def test_what_was_registered_is_warmed_up(name: str, tmp_path: Path) -> None:
    version = models.MODELS[name](tmp_path)
    runtime = runtime_of(version.runtime)
    version = replace(version, signature=runtime.inspect(tmp_path, version, None))  # type: ignore[attr-defined]
    loaded = runtime.load(tmp_path, version)
    warm_up(loaded, version)
    loaded.close()
