"""Decides on which rows two forms of one model are compared: the given ones, their extremes, and beyond."""

from collections.abc import Mapping

import numpy as np

from interlock.core.model import Array
from interlock.core.table import MISSING

ROWS = "rows"
MISSING_VALUES = "missing values"
UNSEEN = "unseen texts"

UNSEEN_TEXT = b"interlock: a text of no row"

_MOST_NUMBERS = 4_000_000
"""Numbers that are made at most: of very wide tables, only some columns' extremes are tried."""


def widened(columns: Mapping[str, Array], least_rows: int, seed: int = 0) -> dict[str, dict[str, Array]]:
    """Groups of rows to compare on, from columns ([rows] each: numbers, or BYTES): `rows`, then, where they
    mean something, `missing values` and `unseen texts`, which a model may refuse.

    `rows` are the given ones without gaps, each number column's least and greatest value, values one range's
    width outside of both, and seeded draws within and beyond the ranges, at least `least_rows`. A draw of
    texts is a text of some row. Numbers keep their dtype.
    """
    numbers = [name for name, values in columns.items() if values.dtype.kind in "iuf"]
    place = {name: index for index, name in enumerate(numbers)}
    rows = len(next(iter(columns.values())))
    # Rows with gaps say nothing of ranges, and are tried with those that have gaps on purpose.
    whole = _whole_rows(columns)
    pool = np.flatnonzero(whole) if whole.any() else np.arange(rows)
    random = np.random.default_rng(seed)
    matrix = (
        np.column_stack([columns[name][pool] for name in numbers]).astype(np.float64) if numbers else None
    )
    wide, at = (
        _wide_numbers(matrix, least_rows, random) if matrix is not None else _drawn(pool, least_rows, random)
    )
    made: dict[str, Array] = {}
    for name, values in columns.items():
        if wide is None or name not in place:
            made[name] = values[pool[at]]
        else:
            made[name] = _as(wide[:, place[name]], values.dtype)
    groups = {ROWS: made}
    if gaps := _with_gaps(columns, made, rows, whole):
        groups[MISSING_VALUES] = gaps
    if texts := [name for name, values in columns.items() if values.dtype.kind == "O"]:
        groups[UNSEEN] = _with_unseen(made, texts)
    return groups


def _wide_numbers(given: Array, least_rows: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Numbers [rows, columns], and for each row the index of the given row whose other columns it takes."""
    count, width = given.shape
    given = np.where(np.isfinite(given), given, 0.0)
    low, high = given.min(axis=0), given.max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    # A range that float32 cannot tell from a point is one: its values beyond would be rounded back onto it.
    visible = np.maximum(4 * np.spacing(size.astype(np.float32)), 1e-30)
    span = np.where(high - low > visible, high - low, np.maximum(1.0, size))
    tried = np.arange(width) if 4 * width * width <= _MOST_NUMBERS else random.permutation(width)
    tried = tried[: max(1, _MOST_NUMBERS // (4 * width))]
    extremes = np.repeat(given[random.integers(count, size=len(tried))], 4, axis=0)
    for index, column in enumerate(tried):
        ends = (low[column], high[column], low[column] - span[column], high[column] + span[column])
        extremes[4 * index : 4 * index + 4, column] = ends
    corners = np.array([low, high, low - span, high + span])
    lacking = max(0, min(least_rows, max(1, _MOST_NUMBERS // width)) - count - len(corners) - len(extremes))
    within = lacking // 2
    drawn = [
        random.uniform(low, high, (within, width)),
        random.uniform(low - span, high + span, (lacking - within, width)),
    ]
    wide = np.concatenate([given, corners, extremes, *drawn])
    at = np.concatenate([np.arange(count), random.integers(count, size=len(wide) - count)])
    return wide, at


def _drawn(pool: Array, least_rows: int, random: np.random.Generator) -> tuple[None, Array]:
    lacking = max(0, least_rows - len(pool))
    return None, np.concatenate([np.arange(len(pool)), random.integers(len(pool), size=lacking)])


def _whole_rows(columns: Mapping[str, Array]) -> Array:
    whole = np.ones(len(next(iter(columns.values()))), np.bool_)
    for values in columns.values():
        whole &= ~_gaps(values)
    return whole


def _gaps(values: Array) -> Array:
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    if values.dtype.kind == "O":
        return np.array([value == MISSING for value in values.tolist()], np.bool_)
    return np.zeros(len(values), np.bool_)


def _with_gaps(
    columns: Mapping[str, Array], made: Mapping[str, Array], rows: int, whole: Array
) -> dict[str, Array]:
    """The given rows that have gaps, and one row for each column that can have one, with it."""
    odd = np.flatnonzero(~whole)
    able = [name for name, values in columns.items() if values.dtype.kind in "fO"]
    if not able:
        return {}
    able = able[: max(1, _MOST_NUMBERS // len(columns))]
    place = {name: row for row, name in enumerate(able)}
    result = {}
    for name, values in columns.items():
        planted = made[name][np.arange(len(able)) % len(made[name])].copy()
        if name in place:
            planted[place[name]] = np.nan if values.dtype.kind == "f" else MISSING
        result[name] = np.concatenate([values[odd], planted])
    return result


def _with_unseen(made: Mapping[str, Array], texts: list[str]) -> dict[str, Array]:
    result = {name: values[np.arange(len(texts)) % len(values)].copy() for name, values in made.items()}
    for row, name in enumerate(texts):
        result[name][row] = UNSEEN_TEXT
    return result


def _as(values: Array, dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind == "f":
        return values.astype(dtype)
    info = np.iinfo(dtype.str)
    # The next float below the bound: the bound of 64 bits itself is rounded up, beyond it.
    most = np.nextafter(float(info.max), 0) if info.max > 2**53 else float(info.max)
    return np.clip(np.rint(values), float(info.min), most).astype(dtype)
