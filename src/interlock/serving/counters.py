"""Owns a node's totals: sums the blocks of all processes, and folds those of dead ones into `retired.json`.

A fold is one atomic replacement of a file that holds both the totals and the names of the blocks in them;
the block is unlinked afterwards. Whatever moment `kill -9` picks, a block is in the totals once: before the
replacement not at all (it is still there), after it by name (a second fold only unlinks).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import add
from pathlib import Path

import msgspec

from interlock.core.errors import ConfigError, LedgerError, SchemaTooNew
from interlock.core.route import COPY_ARM
from interlock.core.state import ArmCounts, ArmKey
from interlock.serving.block import (
    CANCELLED,
    CELLS,
    DISPATCHED,
    FAILED,
    INVALID,
    OK,
    OTHER,
    SCHEMA,
    TIMED_OUT,
    Block,
    Phase,
    Slot,
    block_path,
    counters_folder,
)
from interlock.serving.block_reader import (
    BlockView,
    as_counts,
    block_files,
    owner_is_dead,
    read_block,
    read_rows,
    upgraded,
)

__all__ = [
    "CANCELLED",
    "DISPATCHED",
    "FAILED",
    "INVALID",
    "OK",
    "OTHER",
    "TIMED_OUT",
    "Block",
    "BlockView",
    "Phase",
    "Slot",
    "abandoned",
    "block_files",
    "block_path",
    "fold",
    "owner_is_dead",
    "read_all",
    "read_block",
]

RETIRED_SCHEMA = SCHEMA
"""Its arms have the cells of the blocks' schema of the same number."""
MOST_RETIRED = 4096
"""Arms that are kept apart; beyond, those of the oldest releases become one row a model and version
(two where it ran copies)."""


class _Arm(msgspec.Struct, frozen=True):
    key: ArmKey
    lost: int
    cells: list[int]


class _Retired(msgspec.Struct, frozen=True):
    folded: list[str] = []
    arms: list[_Arm] = []
    schema: int = 1  # what a file without one has; written always


_decoder = msgspec.json.Decoder(_Retired)


def abandoned(run_folder: Path) -> list[Path]:
    """Blocks whose owner is dead: what control folds."""
    return [path for path in block_files(run_folder) if owner_is_dead(path)]


def fold(run_folder: Path, dead: Path) -> None:
    """Add a dead incarnation's totals to the retired ones and remove its block. For control alone.

    What was dispatched and never settled becomes `lost`. Folding twice is folding once.
    Raises: ConfigError if the owner lives; LedgerError if `retired.json` cannot be read; OSError.
    """
    folder = counters_folder(run_folder)
    with _alone(folder):
        retired = _load(folder)
        if dead.name not in retired.folded:
            if not dead.exists():
                return
            if not owner_is_dead(dead):
                raise ConfigError(f"{dead.name}: its process lives and counts on; fold it when that is gone")
            rows = read_rows(dead)
            if rows is None:  # not a block of ours: out of the way, but not destroyed
                dead.rename(dead.with_suffix(".unreadable"))
                return
            # A name whose file is gone is never asked for again: incarnations are not reused.
            folded = [name for name in retired.folded if (folder / name).exists()]
            arms = _collapse(_add(retired.arms, rows))
            _store(folder, _Retired([*folded, dead.name], arms, RETIRED_SCHEMA))
        dead.unlink(missing_ok=True)


def read_all(run_folder: Path) -> dict[ArmKey, ArmCounts]:
    """The node's totals since it was set up: live blocks, dead ones not folded yet, and the retired.

    Raises: LedgerError if `retired.json` cannot be read.
    """
    folder = counters_folder(run_folder)
    totals: dict[ArmKey, ArmCounts] = {}
    for _ in range(8):
        stamp = _stamp(folder)
        retired = _load(folder)
        totals = {arm.key: as_counts(arm.cells, arm.lost) for arm in retired.arms}
        for path in block_files(run_folder):
            if path.name in retired.folded:
                continue
            for key, row in read_rows(path) or ():
                counts = as_counts(row)
                totals[key] = totals[key].merge(counts) if key in totals else counts
        if stamp == _stamp(folder):  # else a fold moved a block between the two readings
            break
    return totals


def _add(arms: list[_Arm], rows: list[tuple[ArmKey, list[int]]]) -> list[_Arm]:
    by_key = {arm.key: arm for arm in arms}
    for key, row in rows:
        settled = row[OK] + row[INVALID] + row[FAILED] + row[TIMED_OUT] + row[CANCELLED]
        lost = max(row[DISPATCHED] - settled, 0)
        by_key[key] = _merge(by_key.get(key), _Arm(key, lost, row))
    return list(by_key.values())


def _merge(into: _Arm | None, arm: _Arm) -> _Arm:
    if into is None:
        return arm
    return _Arm(arm.key, into.lost + arm.lost, list(map(add, into.cells, arm.cells)))


def _collapse(arms: list[_Arm]) -> list[_Arm]:
    if len(arms) <= MOST_RETIRED:
        return arms
    newest_first = sorted(arms, key=lambda arm: arm.key.release, reverse=True)
    kept = {arm.key: arm for arm in newest_first[: MOST_RETIRED // 2]}
    for arm in newest_first[MOST_RETIRED // 2 :]:
        # Copies stay apart from what clients asked.
        number = COPY_ARM if arm.key.arm == COPY_ARM else 0
        key = ArmKey(arm.key.model, arm.key.version, release=0, epoch=0, arm=number)
        kept[key] = _merge(kept.get(key), _Arm(key, arm.lost, arm.cells))
    return list(kept.values())


def _load(folder: Path) -> _Retired:
    path = folder / "retired.json"
    try:
        retired = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return _Retired()
    except (OSError, msgspec.DecodeError) as error:
        raise LedgerError(f"{path} cannot be read ({error}): move it away to count from zero") from error
    if retired.schema > RETIRED_SCHEMA:
        raise SchemaTooNew(f"{path} has schema {retired.schema}, this Interlock reads {RETIRED_SCHEMA}")
    arms = []
    for arm in retired.arms:
        cells = upgraded(arm.cells, retired.schema)
        if cells is None:
            raise LedgerError(
                f"{path} has a row of {len(arm.cells)} cells, which schema {retired.schema} does not have"
                f" (schema {SCHEMA} has {CELLS}): move it away to count from zero"
            )
        arms.append(_Arm(arm.key, arm.lost, cells))
    return _Retired(retired.folded, arms, RETIRED_SCHEMA)


def _store(folder: Path, retired: _Retired) -> None:
    hidden = folder / "retired.new"
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(retired))
        file.flush()
        os.fsync(fd)
    hidden.rename(folder / "retired.json")


def _stamp(folder: Path) -> tuple[int, int, int]:
    try:
        stat = (folder / "retired.json").stat()
    except OSError:
        return (0, 0, 0)
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    # A control that is being replaced may not have noticed yet.
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / "retired.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
