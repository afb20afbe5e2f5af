"""Owns the parts of an unfinished output: a folder beside it, in which a part is whole or not there.

`.NAME.parts/` holds `plan.json` (what is scored, by what, in which parts), a file for each part, and a lock.
Each file appears by a rename after its bytes are on the disk, so that a run may be killed at any moment;
a part whose name a power cut loses is scored again.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import ConfigError
from interlock.operations.arrow import parquet
from interlock.operations.arrow import pyarrow as pa
from interlock.operations.score_columns import ERROR, unified

SCHEMA = 1
PART_BYTES = 8 * 1024**2
PART_S = 10.0
MOST_PART_ROWS = 65_536
LEAST_PARTS = 32
_GROUP_ROWS = 131_072


class Plan(msgspec.Struct, frozen=True):
    """What one output is made of. Two runs with equal plans make the same output.

    The input is known by its size, its time of change and a digest of its footer: the footer says where each
    column's pages lie and what is in them, in bytes, extremes and nulls. To hash all of the file would be to
    read it twice, and only whoever sets the clock of a file back could fool this.
    """

    input_bytes: int
    input_mtime_ns: int
    input_footer: str
    rows: int
    version: str
    record: str
    columns: tuple[str, ...]
    keep: tuple[str, ...]
    errors: str
    part_rows: int
    schema: int = SCHEMA

    @property
    def parts(self) -> int:
        """How many parts there are; one, without rows, of an empty input."""
        return max(1, -(-self.rows // self.part_rows))

    def part(self, index: int) -> tuple[int, int]:
        """The rows of a part, [start, stop)."""
        return index * self.part_rows, min((index + 1) * self.part_rows, self.rows)


def rows_a_part(rows: int, row_bytes: float, call_rows: int, row_s: float) -> int:
    """How many rows a part has: whole calls, some MB, some seconds, and a share of the file.

    >>> rows_a_part(284_807, 248, 256, 1e-6), rows_a_part(1000, 8, 256, 1.0), rows_a_part(0, 0, 256, 0.0)
    (8960, 256, 1024)
    """
    most = min(MOST_PART_ROWS, PART_BYTES / max(row_bytes, 1.0), PART_S / max(row_s, 1e-9))
    most = min(most, max(-(-rows // LEAST_PARTS), 1024))
    return max(1, -(-int(most) // call_rows)) * call_rows


def identity(path: Path) -> tuple[int, int, str]:
    """The size, the time of change and a digest of the footer of a Parquet file.

    Raises: ConfigError if it is none.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        file.seek(max(0, stat.st_size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little") + 8
        if tail[4:] != b"PAR1" or length > stat.st_size:
            raise ConfigError(f"input {path}: it is no Parquet file")
        file.seek(stat.st_size - length)
        return stat.st_size, stat.st_mtime_ns, hashlib.sha256(file.read(length)).hexdigest()


def chunks(file: Any, plan: Plan, done: Collection[int]) -> Iterator[tuple[int, Any]]:
    """The parts that are not done, each as an Arrow table, in order; no other rows are kept in memory."""
    missing = [index for index in range(plan.parts) if index not in done]
    if not missing or not plan.rows:
        return
    columns = list(dict.fromkeys((*plan.columns, *plan.keep)))
    row, group = 0, 0
    while row + file.metadata.row_group(group).num_rows <= plan.part(missing[0])[0]:
        row += file.metadata.row_group(group).num_rows
        group += 1
    groups = list(range(group, file.num_row_groups))
    gathered: list[Any] = []
    size = min(plan.part_rows, 16_384)
    # One thread reads faster than a model answers; the cores are the model's.
    for batch in file.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
        while batch.num_rows:
            index = row // plan.part_rows
            taken = min(batch.num_rows, plan.part(index)[1] - row)
            if index not in done:
                gathered.append(batch.slice(0, taken))
            batch, row = batch.slice(taken), row + taken
            if row == plan.part(index)[1]:
                if gathered:
                    yield index, pa.Table.from_batches(gathered).select(columns)
                gathered = []
                if index == missing[-1]:
                    return


class Parts:
    """The parts of one output, while this process holds its lock."""

    def __init__(self, output: Path) -> None:
        """Raises: ConfigError if another process is at it, or the folder cannot be written to."""
        self.output = output
        self.folder = output.parent / f".{output.name}.parts"
        self._there: set[int] = set()
        self._joined: _Joined | None = None
        while True:
            try:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if not output.parent.is_dir():
                    raise ConfigError(f"output {output}: there is no folder {output.parent}") from None
                continue  # the run before has just removed its folder
            except OSError as error:
                raise ConfigError(f"output {output}: {error.strerror}: {self.folder}") from None
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._lock).st_nlink:  # not of a folder that is gone
                    return
            except BlockingIOError:
                os.close(self._lock)
                raise ConfigError(
                    f"output {output}: another process is writing it; wait for its end"
                ) from None
            os.close(self._lock)

    def was_finished(self, plan: Plan) -> bool:
        """Whether a run before made the output by this plan, and was killed before it could clean up."""
        try:
            said = (self.folder / "finished").read_text()
            stat = self.output.stat()
        except OSError:
            return False
        return said == f"{stat.st_dev} {stat.st_ino} {stat.st_size}" and self._plan() == plan

    def begin(self, plan: Plan, say: Callable[[str], object]) -> set[int]:
        """The parts that are done already. Those of another plan are dropped, and `say` hears why."""
        before = self._plan()
        if before == plan:
            self._there = {index for index in range(plan.parts) if self._is_whole(plan, index)}
            return set(self._there)
        if (self.folder / "plan.json").exists():
            say(f"starting anew: {_changed(before, plan)}")
        for old in self.folder.iterdir():
            if old.name != "lock":
                old.unlink()
        self._put("plan.json", msgspec.json.encode(plan))
        return set()

    def write(self, index: int, rows: Any) -> None:
        """Keep a part. Raises: OSError."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        self._put(f"{index:09}.arrow", sink.getvalue())
        self._there.add(index)

    def join(self, plan: Plan) -> None:
        """Put into the output what has all parts before it, so that little is left to do at the end.

        For one thread at a time; others may write parts meanwhile. Raises: OSError.
        """
        if self._joined is None:
            self._joined = _Joined(self.folder / "final.parquet", plan, self._part)
        self._joined.take(self._there)

    def finish(self, plan: Plan) -> int:
        """Put all parts together, and the output in its place by one rename; how many rows have an error.

        Raises: OSError; then nothing of the output is there, and the parts are kept.
        """
        self.join(plan)
        assert self._joined is not None
        stat = self._joined.end()
        self._put("finished", f"{stat.st_dev} {stat.st_ino} {stat.st_size}".encode())
        _sync(self.folder)
        self._joined.path.rename(self.output)
        _sync(self.output.parent)
        return self._joined.failed

    def remove(self) -> None:
        """Nothing of the parts is needed any more; what `was_finished` reads goes last."""
        for part in self.folder.glob("*.arrow"):
            part.unlink()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let another process have the lock; an empty folder goes."""
        if self._joined is not None:
            self._joined.close()
        if self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == ["lock"]:
            self.remove()
        os.close(self._lock)

    def _plan(self) -> Plan | None:
        try:
            return msgspec.json.decode((self.folder / "plan.json").read_bytes(), type=Plan)
        except (OSError, msgspec.MsgspecError):
            return None

    def _part(self, index: int) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / f"{index:09}.arrow")))

    def _is_whole(self, plan: Plan, index: int) -> bool:
        start, stop = plan.part(index)
        try:
            part = self._part(index)
            rows = sum(part.get_batch(i).num_rows for i in range(part.num_record_batches))
            return bool(rows == stop - start)
        except (OSError, pa.ArrowInvalid):
            return False

    def _put(self, name: str, data: Any) -> None:
        partial = self.folder / f"{name}.partial"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.folder / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class _Joined:
    """The output as far as it goes: whole row groups, each of some parts that follow each other.

    Where a group ends depends on the plan alone, and so do the bytes that are written.
    """

    def __init__(self, path: Path, plan: Plan, part: Callable[[int], Any]) -> None:
        self.path = path
        self.failed = 0
        self._plan = plan
        self._part = part
        self._file = path.open("wb")
        self._schema: Any = None
        self._writer: Any = None
        self._next = 0

    def take(self, there: Collection[int]) -> None:
        """Write the groups whose parts are all `there`."""
        parts_a_group = -(-_GROUP_ROWS // self._plan.part_rows)
        while self._next < self._plan.parts:
            stop = min(self._next + parts_a_group, self._plan.parts)
            if not all(index in there for index in range(self._next, stop)):
                return
            parts = [self._part(index).read_all() for index in range(self._next, stop)]
            schema = unified([self._schema or parts[0].schema, *(part.schema for part in parts)])
            if schema != self._schema:
                self._begin(schema)  # anew, if only now a text is no UTF-8
                continue
            same = (part if part.schema == schema else part.cast(schema) for part in parts)
            rows = pa.concat_tables(same).combine_chunks()
            if self._plan.errors == "null":
                self.failed += rows.num_rows - rows[ERROR].null_count
            self._writer.write_table(rows, row_group_size=_GROUP_ROWS)
            self._next = stop

    def _begin(self, schema: Any) -> None:
        self._file.seek(0)
        self._file.truncate()
        # A dictionary of floats takes longer to make than all the rest, and saves nearly nothing.
        repeated = [field.name for field in schema if not pa.types.is_floating(field.type)]
        self._schema = schema
        self._writer = parquet.ParquetWriter(self._file, schema, use_dictionary=repeated)
        self._next = self.failed = 0

    def end(self) -> os.stat_result:
        """Write the footer, and all to the disk."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Give back what it holds."""
        self._file.close()


def _changed(before: Plan | None, plan: Plan) -> str:
    if before is None or before.schema != plan.schema:
        return "the parts are of another Interlock"
    names = {
        **dict.fromkeys(("input_bytes", "input_mtime_ns", "input_footer", "rows"), "the input"),
        **dict.fromkeys(("version", "record"), "the version"),
        "part_rows": "the size of parts",
    }
    found = [
        names.get(name, f"--{name}")
        for name in plan.__struct_fields__
        if getattr(before, name) != getattr(plan, name)
    ]
    return f"{' and '.join(dict.fromkeys(found))} changed since the run before"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)
