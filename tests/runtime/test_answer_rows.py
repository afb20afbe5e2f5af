"""Holds how rows are asked offline: every row once, in order, and the culprits found exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import InterlockError, PredictFailed, Unsupported
from interlock.core.model import Capabilities, Signature, TensorSpec, Version
from interlock.runtime.answer_rows import calls, check_by_rows, rows_a_call, separate

ROWS = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))


USUAL = Capabilities()


def a_version(signature: Signature = ROWS, capabilities: Capabilities = USUAL) -> Version:
    return Version("m", "1", "sha256:" + "0" * 64, "python", "m.py:M", signature, capabilities)


@given(st.integers(0, 500), st.integers(1, 64))
def test_calls_cover_every_row_once_in_order(rows: int, most_rows: int) -> None:
    found = calls(rows, most_rows)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
    assert all(0 < stop - start <= most_rows for start, stop in found)


@given(st.integers(1, 200), st.sets(st.integers(0, 199)), st.integers(1, 200))
def test_separate_finds_exactly_the_culprits(rows: int, bad: set[int], most_rows: int) -> None:
    """Also of a model that takes fewer rows at once than it is asked with."""

    def ask(start: int, stop: int) -> list[int] | InterlockError:
        if stop - start > most_rows or bad & set(range(start, stop)):
            return PredictFailed("no")
        return list(range(start, stop))

    answered: list[int] = []
    failed: list[int] = []
    for start, stop, found in separate(ask, 0, rows):
        if isinstance(found, InterlockError):
            assert stop == start + 1
            failed.append(start)
        else:
            answered += found
    assert failed == sorted(row for row in bad if row < rows)
    assert answered == [row for row in range(rows) if row not in bad]


def test_separate_asks_for_no_more_than_is_wanted() -> None:
    asked: list[tuple[int, int]] = []

    def ask(start: int, stop: int) -> InterlockError:
        asked.append((start, stop))
        return PredictFailed("no")

    next(separate(ask, 0, 8))
    assert asked == [(0, 8), (0, 4), (0, 2), (0, 1)]


@pytest.mark.parametrize(
    ("capabilities", "rows"),
    [
        (Capabilities(max_batch_rows=32), 32),
        (Capabilities(batchable=False), 1),
        (Capabilities(side_effect_free=False), 1),
    ],
)
def test_rows_that_may_not_be_joined_are_asked_alone(capabilities: Capabilities, rows: int) -> None:
    assert rows_a_call(a_version(capabilities=capabilities)) == rows


def test_without_a_batch_axis_rows_are_asked_alone() -> None:
    fixed = Signature((TensorSpec("x", "FP32", (1, 2)),), (TensorSpec("y", "FP32", (1, 2)),), None)
    check_by_rows(a_version(fixed))
    assert rows_a_call(a_version(fixed)) == 1


def test_what_has_no_answer_for_each_row_is_refused() -> None:
    with pytest.raises(Unsupported, match="answers in parts"):
        check_by_rows(a_version(capabilities=Capabilities(streaming=True)))
    table = Signature((TensorSpec("table", "FP32", (4, 2)),), (TensorSpec("y", "FP32", (-1,)),), None)
    with pytest.raises(Unsupported, match=r"input 'table' has shape \[4, 2\]"):
        check_by_rows(a_version(table))
