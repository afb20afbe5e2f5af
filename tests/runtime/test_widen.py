"""Holds which rows two forms of a model are compared on."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from interlock.core.table import MISSING
from interlock.runtime.widen import MISSING_VALUES, ROWS, UNSEEN, UNSEEN_TEXT, widened
from tests.thorough import examples

MATRICES = arrays_of.arrays(
    np.float64,
    st.tuples(st.integers(1, 20), st.integers(1, 5)),
    elements=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
)


@settings(max_examples=examples(60), deadline=None)
@given(matrix=MATRICES, least=st.integers(1, 300))
def test_rows_hold_the_given_ones_and_their_extremes(matrix: np.ndarray, least: int) -> None:
    columns = {str(index): column.astype(np.float32) for index, column in enumerate(matrix.T)}
    groups = widened(columns, least)
    wide, gaps = (np.column_stack(list(groups[name].values())) for name in (ROWS, MISSING_VALUES))
    assert wide.dtype == np.float32 and len(wide) >= least and wide.shape[1] == matrix.shape[1]
    given_rows = {row.tobytes() for row in matrix.astype(np.float32)}
    assert given_rows <= {row.tobytes() for row in np.concatenate([wide, gaps])}
    assert np.isnan(gaps).any(axis=0).all()
    whole = matrix[np.isfinite(matrix).all(axis=1)]
    if len(whole):
        assert (wide.min(axis=0) < whole.min(axis=0).astype(np.float32)).all()
        assert (wide.max(axis=0) > whole.max(axis=0).astype(np.float32)).all()
    again = widened(columns, least)
    for name, rows in groups.items():
        assert all(np.array_equal(rows[c], again[name][c], equal_nan=True) for c in columns)  # seeded


@settings(max_examples=examples(40), deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.sampled_from([b"a", b"b", MISSING]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    least=st.integers(1, 100),
)
def test_mixed_columns_keep_their_kinds(rows: list[tuple[int, bytes, bool]], least: int) -> None:
    texts: Any = np.empty(len(rows), object)
    texts[:] = [row[1] for row in rows]
    columns = {
        "count": np.array([row[0] for row in rows], np.int64),
        "word": texts,
        "flag": np.array([row[2] for row in rows]),
    }
    groups = widened(columns, least)
    for group in groups.values():
        assert {name: values.dtype for name, values in group.items()} == {
            name: values.dtype for name, values in columns.items()
        }
        assert len({len(values) for values in group.values()}) == 1
    assert len(groups[ROWS]["count"]) >= least
    assert set(groups[ROWS]["word"].tolist()) <= set(texts.tolist())
    assert MISSING in groups[MISSING_VALUES]["word"].tolist()
    assert UNSEEN_TEXT in groups[UNSEEN]["word"].tolist()


def test_a_table_of_texts_alone_is_drawn_from() -> None:
    groups = widened({"word": np.array([b"a", b"b"], object)}, 50)
    assert len(groups[ROWS]["word"]) == 50


def test_very_wide_tables_stay_bounded() -> None:
    columns = {str(index): np.arange(3.0) for index in range(5000)}
    groups = widened(columns, 4000)
    assert 3 < len(groups[ROWS]["0"]) * 5000 <= 3 * 4_000_000
