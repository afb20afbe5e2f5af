"""Owns the scoring of one batch: columns in, columns out, by a model in a process of its own."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import InterlockError, InvalidRequest
from interlock.core.model import Array, Tensors, Version
from interlock.operations.arrow import pyarrow as pa
from interlock.operations.score_columns import columns_wanted, inputs_of, table_of
from interlock.runtime.answer_process import DEFAULT_CALL_S, Answerer, Failure
from interlock.runtime.answer_rows import separate
from interlock.runtime.child import error_of


class Scored(msgspec.Struct, frozen=True):
    """The outputs of a batch as an Arrow table [rows], null in the rows of `failures`."""

    table: Any
    failures: tuple[Failure, ...]


class ScoreBatch:
    """Scores Arrow tables, or dicts of columns, with one version of a model. Any number of threads may ask:
    one's columns are converted while another's are answered.

    Made of a folder and a Version record alone, so that any scheduler of batches can make it where it runs;
    the process with the model starts with `start`, or with the first batch.
    """

    def __init__(self, folder: Path | str, version: Version, *, call_s: float = DEFAULT_CALL_S) -> None:
        """Raises: Unsupported: a version that does not give one answer for each row."""
        self._arguments = (str(folder), version, call_s)
        self._version = version
        self._answerer = Answerer(Path(folder), version, call_s=call_s)
        self._turn = threading.Lock()

    def __reduce__(self) -> Any:
        folder, version, call_s = self._arguments
        return _made, (folder, version, call_s)

    def start(self) -> None:
        """Start the model's process now. Raises: LoadFailed, DigestMismatch, MissingExtra …"""
        self._answerer.start()

    def __call__(self, batch: Any) -> dict[str, Array]:
        """The outputs by name, from an Arrow table or a dict of columns; other columns are ignored.

        Raises: the error of the first row that has no answer, with its number; InputMismatch; LoadFailed …
        """
        if isinstance(batch, Mapping):
            batch = pa.table({name: _listed(values) for name, values in batch.items()})
        done = self.scored(batch, first_only=True)
        for failure in done.failures:
            raise of_row(failure, 0)
        return {name: done.table[name].to_numpy() for name in done.table.column_names}

    def scored(self, rows: Any, *, first_only: bool = False) -> Scored:
        """The outputs for an Arrow table, and the rows that have none; `first_only`: stop at the first.

        Raises: InputMismatch; LoadFailed, DigestMismatch, MissingExtra …; ModelCrashed if it is given up.
        """
        signature = self._version.signature
        rows = rows.select(columns_wanted(signature, rows.column_names))
        groups: list[Tensors] = []
        failures: list[Failure] = []

        def convert(start: int, stop: int) -> Tensors | InterlockError:
            try:
                return inputs_of(signature, rows.slice(start, stop - start))
            except InvalidRequest as error:
                return error

        for start, _, found in separate(convert, 0, rows.num_rows) if rows.num_rows else ():
            if isinstance(found, InterlockError):
                failures.append(Failure(start, found))
            else:
                with self._turn:
                    answers = self._answerer.attempt(found, first_only=first_only)
                groups += answers.groups
                failures += [Failure(start + each.row, each.error) for each in answers.failures]
            if first_only and failures:
                return Scored(None, tuple(failures))
        made = table_of(signature, groups)
        return Scored(_spread(made, rows.num_rows, failures), tuple(failures))

    def close(self) -> None:
        """End the model's process. Any thread may call it."""
        self._answerer.close()


def of_row(failure: Failure, first_row: int) -> InterlockError:
    """The error of a row, with its number in the file."""
    words = f"row {first_row + failure.row}: {failure.error.message}"
    return error_of(type(failure.error).__name__, words, InterlockError)


def _made(folder: str, version: Version, call_s: float) -> ScoreBatch:
    return ScoreBatch(folder, version, call_s=call_s)


def _listed(values: Any) -> Any:
    """NumPy matrices are lists of lists to Arrow."""
    return list(values) if getattr(values, "ndim", 1) > 1 else values


def _spread(made: Any, rows: int, failures: list[Failure]) -> Any:
    """The answers in the rows that they are for, null in the others."""
    if not failures:
        return made
    bad = {failure.row for failure in failures}
    places = iter(range(rows))
    return made.take(pa.array([None if row in bad else next(places) for row in range(rows)], pa.int64()))
