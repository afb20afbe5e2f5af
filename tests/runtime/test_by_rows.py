"""Holds the choice of a backend by rows, and the model that has two, to what they promise."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import LoadFailed
from interlock.core.model import Signature, Tensors, TensorSpec
from interlock.runtime.by_rows import ALL, MARGIN, MEASURED_ROWS, ByRows, onnx_rows, with_onnx
from tests.runtime.models import version

times = st.fixed_dictionaries({rows: st.floats(1e-6, 1e-2) for rows in MEASURED_ROWS})


@given(times, times)
def test_onnx_gets_only_sizes_at_which_it_won_and_all_of_them_up_to_the_first_loss(
    native_s: dict[int, float], onnx_s: dict[int, float]
) -> None:
    won = [rows for rows in MEASURED_ROWS if onnx_s[rows] * MARGIN <= native_s[rows]]
    chosen = onnx_rows(native_s, onnx_s)
    if chosen is None:
        assert not won
        return
    least, most = chosen
    covered = [rows for rows in MEASURED_ROWS if rows >= least and (most is None or rows <= most)]
    assert set(covered) <= set(won) and least == won[0]
    after = [rows for rows in MEASURED_ROWS if most is not None and rows > most]
    assert not after or after[0] not in won
    assert (chosen == ALL) == (len(won) == len(MEASURED_ROWS))


@given(times, st.floats(1 / MARGIN + 1e-6, 1.0))
def test_noise_below_the_margin_never_brings_a_second_backend(
    native_s: dict[int, float], share: float
) -> None:
    assert onnx_rows(native_s, {rows: taken * share for rows, taken in native_s.items()}) is None


class Said:
    def __init__(self, word: str) -> None:
        self.word, self.closed = word, False

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        return {"y": np.full(len(inputs["x"]), self.word, object)}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [((1, 8), "oon"), ((8, None), "noo"), ((8, 8), "non"), (ALL, "ooo")],
)
def test_batches_go_where_their_rows_say(rows: tuple[int, int | None], wanted: str) -> None:
    native, converted = Said("n"), Said("o")
    both = ByRows(native, converted, rows, "x")
    found = "".join(both.predict({"x": np.zeros((count, 2))})["y"][0] for count in (1, 8, 9))
    assert found == wanted
    both.close()
    assert native.closed and converted.closed


@pytest.mark.parametrize(
    "options",
    [{"onnx": "m.onnx"}, {"onnx": 3, "onnx_rows": [1, 2]}, {"onnx": "m.onnx", "onnx_rows": ["1", 2]}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    with pytest.raises(LoadFailed, match="want a file, and its least and most rows"):
        with_onnx(Said("n"), tmp_path, version("xgboost", "m.ubj", **options), Signature((spec,), (spec,)))
