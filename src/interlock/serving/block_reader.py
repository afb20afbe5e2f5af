"""Decides what a reader makes of a mapped block: at any moment, whatever its owner was doing or became."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from interlock.core.state import ArmCounts, ArmKey, Histogram, PairCounts
from interlock.serving.block import (
    BATCHES,
    CANCELLED,
    CELLS,
    COMPUTE,
    COMPUTE_NS,
    COMPUTE_SUM_NS,
    CRUMB,
    DISPATCHED,
    FAILED,
    HEADER_BYTES,
    HEARTBEAT_NS,
    INCARNATION,
    INVALID,
    KEY_BYTES,
    KEY_CELLS,
    KILL_AT_NS,
    MAGIC,
    MAGIC_AT,
    NOT_OK_NS,
    OK,
    OVERFLOWED,
    OWNER,
    PAIRS,
    PHASE,
    PID,
    PROCESS_AT,
    PROCESS_LENGTH,
    QUEUE,
    QUEUE_SUM_NS,
    REFUSED,
    REQUESTS,
    ROW_BYTES,
    ROW_CELLS,
    ROWS,
    SCHEMA,
    SCHEMA_AT,
    SEQUENCE,
    TEXT_BYTES,
    TIMED_OUT,
    TOTAL,
    TOTAL_SUM_NS,
    VERSION_AT,
    VERSION_LENGTH,
    Phase,
    counters_folder,
)

_key_json = msgspec.json.Decoder(ArmKey)

_ROW_CELLS = {1: 432, 2: 448, SCHEMA: ROW_CELLS}
_CELLS = {1: 304, 2: 305, SCHEMA: CELLS}
"""By schema: what one row takes, and how many cells of it are counts."""


class BlockView(msgspec.Struct, frozen=True):
    """One reading of a block. Times are monotonic seconds; `kill_at_s` 0 means never.

    `version_key`, `requests`, `kill_at_s`, `owner` and `sequence` belong to `phase`; a reading always shows
    one breadcrumb, never two mixed.
    """

    path: Path
    process: str
    pid: int
    incarnation: int
    heartbeat_s: float
    phase: Phase
    version_key: str
    requests: int
    kill_at_s: float
    owner: int
    sequence: int
    overflowed: int
    counts: dict[ArmKey, ArmCounts]
    crumbs: int = 0
    """How many breadcrumbs have begun: each load, each batch."""


def read_block(path: Path, counts: bool = True) -> BlockView | None:
    """What a block says now; None if it vanished, is cut short, or is not a block of this schema.

    `counts=False` reads the header alone (heartbeat and breadcrumb): about 15 us.
    """
    with _opened(path, counts) as opened:
        if opened is None:
            return None
        mapped, cells = opened
        phase, version_key, requests, kill_at_ns, owner, sequence = _read_crumb(mapped, cells)
        return BlockView(
            path=path,
            process=_read_text(mapped, PROCESS_AT, cells[PROCESS_LENGTH]),
            pid=cells[PID],
            incarnation=cells[INCARNATION],
            heartbeat_s=cells[HEARTBEAT_NS] / 1e9,
            phase=phase,
            version_key=version_key,
            requests=requests,
            kill_at_s=kill_at_ns / 1e9,
            owner=owner,
            sequence=sequence,
            overflowed=cells[OVERFLOWED],
            counts={key: as_counts(row) for key, row in _rows(mapped, cells)} if counts else {},
            crumbs=cells[CRUMB] // 2,
        )


def read_rows(path: Path) -> list[tuple[ArmKey, list[int]]] | None:
    """The rows that counted anything, each with its `CELLS` cells; None where `read_block` says None."""
    with _opened(path, whole=True) as opened:
        return None if opened is None else list(_rows(*opened))


def block_files(run_folder: Path) -> list[Path]:
    """All blocks of a node, live and dead."""
    return sorted(counters_folder(run_folder).glob("*.block"))


def owner_is_dead(path: Path) -> bool:
    """True when no process holds the block any more (it exists, and its lock is free)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def upgraded(row: list[int], schema: int) -> list[int] | None:
    """The counts of one row that a process of `schema` wrote, as `CELLS` cells; None if it has another number
    of them than that schema. What that schema did not count is 0."""
    if len(row) != _CELLS.get(schema):
        return None
    if schema < 2:
        row = [*row[:NOT_OK_NS], 0, *row[NOT_OK_NS:]]
    if schema < 3:
        row = [*row[:PAIRS], *[0] * (DISPATCHED - PAIRS), *row[PAIRS:]]
    return row


def as_counts(row: list[int], lost: int = 0) -> ArmCounts:
    """The cells of one row as the mergeable state."""
    return ArmCounts(
        dispatched=row[DISPATCHED],
        ok=row[OK],
        invalid=row[INVALID],
        failed=row[FAILED],
        timed_out=row[TIMED_OUT],
        cancelled=row[CANCELLED],
        lost=lost,
        refused=row[REFUSED],
        rows=row[ROWS],
        batches=row[BATCHES],
        compute_ns=row[COMPUTE_NS],
        not_ok_ns=row[NOT_OK_NS],
        total=Histogram(tuple(row[TOTAL:TOTAL_SUM_NS]), row[TOTAL_SUM_NS] / 1e9),
        queue=Histogram(tuple(row[QUEUE:QUEUE_SUM_NS]), row[QUEUE_SUM_NS] / 1e9),
        compute=Histogram(tuple(row[COMPUTE:COMPUTE_SUM_NS]), row[COMPUTE_SUM_NS] / 1e9),
        pairs=PairCounts(*row[PAIRS:DISPATCHED]),
    )


@contextmanager
def _opened(path: Path, whole: bool) -> Iterator[tuple[mmap.mmap, memoryview] | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        size = os.fstat(fd).st_size
        mapped = mmap.mmap(fd, size if whole else HEADER_BYTES, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        yield None
        return
    finally:
        os.close(fd)
    with mapped, memoryview(mapped) as raw, raw[: len(raw) // 8 * 8].cast("q") as cells:
        ours = size >= HEADER_BYTES and cells[MAGIC_AT] == MAGIC
        row_cells = _ROW_CELLS.get(cells[SCHEMA_AT]) if ours else None
        yield (mapped, cells) if row_cells and cells[ROW_BYTES] == row_cells * 8 else None


def _rows(mapped: mmap.mmap, cells: memoryview) -> Iterator[tuple[ArmKey, list[int]]]:
    schema = cells[SCHEMA_AT]
    row_cells, counts = _ROW_CELLS[schema], _CELLS[schema]
    for at in range(HEADER_BYTES // 8, len(cells) - row_cells + 1, row_cells):
        length = cells[at]
        if not 0 < length <= KEY_BYTES:
            return
        start = at * 8 + 8
        try:
            key = _key_json.decode(mapped[start : start + length])
        except msgspec.DecodeError:
            return
        row = upgraded(cells[at + KEY_CELLS : at + KEY_CELLS + counts].tolist(), schema)
        if row and any(row):
            yield key, row


def _read_crumb(mapped: mmap.mmap, cells: memoryview) -> tuple[Phase, str, int, int, int, int]:
    for _ in range(64):
        before = cells[CRUMB]
        phase = cells[PHASE]
        crumb = (cells[REQUESTS], cells[KILL_AT_NS], cells[OWNER], cells[SEQUENCE])
        version_key = _read_text(mapped, VERSION_AT, cells[VERSION_LENGTH])
        if before % 2 == 0 and before == cells[CRUMB] and phase in (0, 1, 2):
            return Phase(phase), version_key, *crumb
    # The owner stopped between two breadcrumbs: it was in neither.
    return Phase.IDLE, "", 0, 0, 0, 0


def _read_text(mapped: mmap.mmap, at: int, length: int) -> str:
    return mapped[at : at + min(max(length, 0), TEXT_BYTES)].decode(errors="replace")
