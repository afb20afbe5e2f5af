"""The use case `score`: a Parquet file becomes another with a version's answers, one row for each row."""

import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.model import Version, artifact_path
from interlock.operations.arrow import parquet
from interlock.operations.arrow import pyarrow as pa
from interlock.operations.context import Context
from interlock.operations.cores import usable_cores
from interlock.operations.resolve import resolve
from interlock.operations.score_batch import ScoreBatch, of_row
from interlock.operations.score_columns import ERROR, columns_kept, columns_wanted
from interlock.operations.score_parts import Parts, Plan, chunks, identity, rows_a_part
from interlock.runtime.answer_process import DEFAULT_CALL_S
from interlock.runtime.answer_rows import check_by_rows, rows_a_call

Errors = Literal["stop", "null"]
TURNS = 2
"""Parts at work for each worker: one is answered while another's rows are converted or written."""


class ScoreReport(msgspec.Struct, frozen=True):
    """What a run did. `rows_per_s` counts only what this run scored, not the `resumed_rows`."""

    model: str
    version: str
    digest: str
    rows: int
    resumed_rows: int
    error_rows: int
    seconds: float
    rows_per_s: float
    workers: int
    output: str


def score(
    ctx: Context,
    name: str,
    selector: str | None,
    input: Path,
    output: Path,
    *,
    workers: int | None = None,
    keep: Iterable[str] = (),
    errors: Errors = "stop",
    force: bool = False,
    call_s: float = DEFAULT_CALL_S,
    say: Callable[[str], object] = lambda message: None,
    progress: Callable[[int, int], object] = lambda done, rows: None,
) -> ScoreReport:
    """Score `input` with a version (by number, "@alias", or None for the newest) into `output`.

    A run that was ended at any moment goes on where it was when it is started again. `keep` names columns of
    the input that the output has, too (`["all"]`: every one). `errors`: "stop" at the first row without an
    answer, or "null" to leave its outputs empty and say why in the column `error`. `call_s` bounds each call
    of the model. `progress` hears the rows that are done, and all.
    Raises: MissingExtra; ConfigError: an output that exists (unless `force`), cannot be written or is being
    written; InputMismatch: a column is missing; ModelFailed with the number of the row; as `resolve`.
    """
    started_s = time.monotonic()
    version = resolve(ctx, name, selector, progress=say)
    check_by_rows(version)
    count = workers or usable_cores()
    if not input.is_file():
        raise ConfigError(f"input {input}: there is no such file")
    parts = Parts(output)
    try:
        with _opened(input) as file:
            plan = _plan(version, input, file, tuple(keep), errors)
            if output.exists() and not (force or parts.was_finished(plan)):
                raise ConfigError(f"output {output} exists: remove it, or replace it with --force")
            done = parts.begin(plan, say)
            resumed = sum(stop - start for start, stop in map(plan.part, done))
            if resumed:
                say(f"going on where the run before was: {resumed:,} of {plan.rows:,} rows are done")
            folder = artifact_path(ctx.home, version.digest)
            if len(done) < plan.parts:
                makers = [
                    ScoreBatch(folder, version, call_s=call_s)
                    for _ in range(min(count, plan.parts - len(done)))
                ]
                _run(file, plan, parts, done, makers, lambda rows: progress(resumed + rows, plan.rows))
        if identity(input) != (plan.input_bytes, plan.input_mtime_ns, plan.input_footer):
            raise ConfigError(f"input {input} changed while it was read; score it again")
        failed = parts.finish(plan)
        parts.remove()
    finally:
        parts.close()
    seconds = time.monotonic() - started_s
    return ScoreReport(
        version.model,
        version.number,
        version.digest,
        plan.rows,
        resumed,
        failed,
        round(seconds, 3),
        round((plan.rows - resumed) / seconds, 1),
        count,
        str(output),
    )


def _opened(path: Path) -> Any:
    """With a bounded buffer for each column: a row group may have any size."""
    try:
        return parquet.ParquetFile(path, buffer_size=256 * 1024, pre_buffer=False)
    except pa.ArrowException as error:
        raise ConfigError(f"input {path}: it is no Parquet file that can be read: {error}") from None


def _plan(version: Version, input: Path, file: Any, keep: tuple[str, ...], errors: Errors) -> Plan:
    there = list(file.schema_arrow.names)
    twice = sorted({name for name in there if there.count(name) > 1})
    if twice:
        raise ConfigError(f"input {input}: more than one column is called {twice[0]!r}")
    columns = columns_wanted(version.signature, there)
    kept = columns_kept(keep, there, version.signature, errors == "null")
    size, mtime_ns, footer = identity(input)
    rows = file.metadata.num_rows
    groups = [file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups)]
    batch_s = version.profile.batch_s
    row_s = min((seconds / count for count, seconds in batch_s.items()), default=0.0)
    return Plan(
        size,
        mtime_ns,
        footer,
        rows,
        version.key,
        hashlib.sha256(msgspec.msgpack.encode(version)).hexdigest(),
        tuple(columns),
        tuple(kept),
        errors,
        rows_a_part(rows, sum(groups) / max(1, rows), rows_a_call(version), row_s),
    )


def _run(
    file: Any,
    plan: Plan,
    parts: Parts,
    done: set[int],
    makers: list[ScoreBatch],
    progress: Callable[[int], object],
) -> None:
    """Score what is not done, each part by one of `makers`; the first error ends it all."""
    free: SimpleQueue[ScoreBatch] = SimpleQueue()
    for maker in makers * TURNS:
        free.put(maker)

    def start(maker: ScoreBatch) -> int:
        maker.start()
        return 0

    def one(index: int, rows: Any) -> int:
        maker = free.get()
        try:
            parts.write(index, _part(maker, plan, index, rows))
        finally:
            free.put(maker)
        return int(rows.num_rows)

    scored = 0
    waiting: set[Future[int]] = set()
    pool = ThreadPoolExecutor(len(makers) * TURNS, thread_name_prefix="score")
    try:
        progress(scored)
        if not plan.rows:
            parts.write(0, _part(makers[0], plan, 0, file.schema_arrow.empty_table()))
        else:  # while the first rows are read
            waiting = {pool.submit(start, maker) for maker in makers}
        for index, rows in chunks(file, plan, done):
            waiting.add(pool.submit(one, index, rows))
            del rows
            while len(waiting) >= len(makers) * TURNS:
                scored += _settled(waiting)
                progress(scored)
                parts.join(plan)
        while waiting:
            scored += _settled(waiting)
            progress(scored)
        for maker in makers:
            pool.submit(maker.close)
        parts.join(plan)  # while the processes end
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for maker in makers:
            maker.close()
        pool.shutdown()


def _settled(waiting: set[Future[int]]) -> int:
    """Wait for one part at least; the rows that are done."""
    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
    waiting -= finished
    return sum(future.result() for future in finished)


def _part(maker: ScoreBatch, plan: Plan, index: int, rows: Any) -> Any:
    """A part of the output: the columns that are kept, the outputs and, if wanted, the errors.

    Raises: ModelFailed, InvalidRequest, with the number of the row.
    """
    first_row = plan.part(index)[0]
    done = maker.scored(rows, first_only=plan.errors == "stop")
    if plan.errors == "stop":
        for failure in done.failures:
            raise of_row(failure, first_row)
    columns = {name: rows[name] for name in plan.keep}
    columns |= {name: done.table[name] for name in done.table.column_names}
    if plan.errors == "null":
        words = {failure.row: failure.error.message for failure in done.failures}
        columns[ERROR] = pa.array([words.get(row) for row in range(rows.num_rows)], pa.string())
    return pa.table(columns)
