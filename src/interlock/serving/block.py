"""Owns one mapped block of counters: what a process counted and was doing stays readable after `kill -9`.

One file a process and incarnation, `run/counters/<process>-<incarnation hex>.block`: a header (who,
heartbeat, breadcrumb) and one row of int64 cells for each `ArmKey`. The owner writes, with one aligned store
a cell; anybody reads, at any moment, without a message or a lock. Totals are cumulative. The blocks of dead
incarnations are folded into the retired totals by control alone (`counters.py`).

The owner holds an flock on its block for as long as it lives, so that death is a fact that the kernel tells.
"""

import fcntl
import hashlib
import mmap
import os
from bisect import bisect_left
from enum import IntEnum
from pathlib import Path

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.state import BOUNDS_S, BUCKETS, ArmKey, PairCounts

MAGIC = 0x4B434F4C_42544E49  # "INTBLOCK" in the byte order of the machine that wrote it
SCHEMA = 3
"""2: `NOT_OK_NS`; 3: `PAIRS`. Blocks of the schemas before are read and folded still
(`block_reader.upgraded`)."""

# Header, in cells of 8 bytes.
(MAGIC_AT, SCHEMA_AT, PID, INCARNATION, ROW_BYTES, HEARTBEAT_NS, OVERFLOWED) = range(7)
(CRUMB, PHASE, REQUESTS, KILL_AT_NS, OWNER, SEQUENCE, VERSION_LENGTH) = range(8, 15)
PROCESS_LENGTH = 15
TEXT_BYTES = 960  # a model's name is at most 512 bytes; the rest is for number and digest
PROCESS_AT, VERSION_AT = 1024, 2048
HEADER_BYTES = 4096

# One row: key (length, then JSON), then these cells.
KEY_CELLS = 128
KEY_BYTES = (KEY_CELLS - 1) * 8
(OK, INVALID, FAILED, TIMED_OUT, CANCELLED, REFUSED, ROWS, BATCHES, COMPUTE_NS, NOT_OK_NS) = range(10)
TOTAL = 10
"""First of `BUCKETS` cells: requests by seconds from receipt to settlement; `TOTAL_SUM_NS` is their sum,
of which those that were settled otherwise than OK took `NOT_OK_NS`."""
TOTAL_SUM_NS = TOTAL + BUCKETS
QUEUE = TOTAL_SUM_NS + 1
QUEUE_SUM_NS = QUEUE + BUCKETS
COMPUTE = QUEUE_SUM_NS + 1
COMPUTE_SUM_NS = COMPUTE + BUCKETS
PAIRS = COMPUTE_SUM_NS + 1
"""First of the cells of requests that a second version ran too, in the order of `PairCounts`."""
(GOOD, WORSE, BETTER, BAD, AGREED, DISAGREED) = range(PAIRS, PAIRS + 6)
(UNSOUND_WORSE, UNSOUND_BETTER, UNSOUND_BOTH, SLOWER, FASTER) = range(PAIRS + 6, PAIRS + 11)
(DROPPED, SHIELDED, UNSHIELDED) = range(PAIRS + 11, PAIRS + 14)
# Last on purpose: a reader goes upwards and the owner counts `dispatched` first, so that no reading shows
# more settled than dispatched.
DISPATCHED = PAIRS + len(PairCounts.__struct_fields__)
CELLS = DISPATCHED + 1
ROW_CELLS = (KEY_CELLS + CELLS + 15) // 16 * 16
ROW = ROW_CELLS * 8

OTHER = ArmKey(model="", version="", release=0, epoch=0, arm=0)
"""Where requests are counted when a block has no row left; no model has an empty name."""


class Phase(IntEnum):
    """What the owner's main thread does."""

    IDLE = 0
    LOADING = 1
    RUNNING = 2


class Slot:
    """The cells of one ArmKey. `cells[OK] += 1` is what the methods do; inline it where 0.1 us matters.

    For one thread: an increment is a read, an addition and one aligned store.
    """

    __slots__ = ("cells", "key")

    def __init__(self, key: ArmKey, cells: memoryview) -> None:
        self.key = key
        self.cells = cells

    def dispatched(self, requests: int = 1) -> None:
        """Before the model runs: what is dispatched and never settled was lost with its process."""
        self.cells[DISPATCHED] += requests

    def settled(self, kind: int, total_s: float) -> None:
        """Not answered well, `total_s` after receipt. `kind`: INVALID, FAILED, TIMED_OUT or CANCELLED."""
        cells = self.cells
        nanoseconds = int(total_s * 1e9)
        cells[TOTAL + bisect_left(BOUNDS_S, total_s)] += 1
        cells[TOTAL_SUM_NS] += nanoseconds
        cells[NOT_OK_NS] += nanoseconds
        cells[kind] += 1

    def unsent(self, total_s: float) -> None:
        """Counted OK, `total_s` after receipt, and then not sent: a failure after all."""
        cells = self.cells
        cells[NOT_OK_NS] += int(total_s * 1e9)
        cells[OK] -= 1
        cells[FAILED] += 1

    def settled_ok(self, total_s: float, queue_s: float) -> None:
        """Answered well: `total_s` since receipt, of which `queue_s` waiting for its batch."""
        cells = self.cells
        cells[TOTAL + bisect_left(BOUNDS_S, total_s)] += 1
        cells[TOTAL_SUM_NS] += int(total_s * 1e9)
        cells[QUEUE + bisect_left(BOUNDS_S, queue_s)] += 1
        cells[QUEUE_SUM_NS] += int(queue_s * 1e9)
        cells[OK] += 1

    def all_ok(self, arrived_s: list[float], started_s: float, now: float) -> None:
        """`settled_ok` for the requests of one batch, by when each arrived; sorts the list. Those of a batch
        fall into few buckets, which are found by bisection: 0.1 us a request, 1.0 one by one."""
        arrived_s.sort()
        cells = self.cells
        count = len(arrived_s)
        _spread(cells, TOTAL, now, arrived_s)
        _spread(cells, QUEUE, started_s, arrived_s)
        together_s = sum(arrived_s)
        cells[TOTAL_SUM_NS] += int((count * now - together_s) * 1e9)
        cells[QUEUE_SUM_NS] += int((count * started_s - together_s) * 1e9)
        cells[OK] += count

    def refused(self) -> None:
        """Turned away before dispatch."""
        self.cells[REFUSED] += 1

    def batch(self, rows: int, compute_s: float) -> None:
        """One predict call over `rows` rows."""
        cells = self.cells
        nanoseconds = int(compute_s * 1e9)
        cells[BATCHES] += 1
        cells[ROWS] += rows
        cells[COMPUTE_NS] += nanoseconds
        cells[COMPUTE + bisect_left(BOUNDS_S, compute_s)] += 1
        cells[COMPUTE_SUM_NS] += nanoseconds


def _spread(cells: memoryview, histogram: int, until_s: float, since_s: list[float]) -> None:
    """Count `until_s - since` for each of a sorted list."""
    high = len(since_s)
    while high:
        index = bisect_left(BOUNDS_S, until_s - since_s[high - 1])
        low = bisect_left(since_s, until_s - BOUNDS_S[index], 0, high) if index < len(BOUNDS_S) else 0
        low = min(low, high - 1)  # rounding must not keep the last one out of its own bucket
        cells[histogram + index] += high - low
        high = low


class Block:
    """The owner's side of one file. For one thread, except `heartbeat` (one store)."""

    def __init__(
        self, path: Path, fd: int, process: str, incarnation: int, rows: int, most_rows: int
    ) -> None:
        self.path = path
        self._fd = fd
        self._allocated_rows = 0
        self._most_rows = most_rows
        self._slots: dict[ArmKey, Slot] = {}
        self._version_key = ""
        self._header = memoryview(b"").cast("q")
        self._map = self._grow(max(rows, 1))
        header = self._header
        header[PID] = os.getpid()
        header[INCARNATION] = incarnation
        header[ROW_BYTES] = ROW
        header[SCHEMA_AT] = SCHEMA
        self._text(PROCESS_AT, PROCESS_LENGTH, process)
        header[MAGIC_AT] = MAGIC
        self._other = self._row(OTHER)

    @classmethod
    def create(
        cls, run_folder: Path, process: str, incarnation: int, rows: int = 64, most_rows: int = 8192
    ) -> "Block":
        """A new file, whole at once: a reader never sees half a header.

        Room for `rows` is reserved now and doubled when used up, to at most `most_rows`; a disk that is
        full is an error here, never a SIGBUS at an increment.
        Raises: OSError; ConfigError if this incarnation has a block already.
        """
        path = block_path(run_folder, process, incarnation)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ConfigError(f"{path.name} exists: incarnation {incarnation:x} of {process} was used before")
        hidden = path.with_suffix(".new")
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            block = cls(path, fd, process, incarnation, rows, most_rows)
            hidden.rename(path)
        except BaseException:
            os.close(fd)
            hidden.unlink(missing_ok=True)
            raise
        return block

    def slot(self, key: ArmKey) -> Slot:
        """The cells of `key`. With no room left: those of `OTHER`, and `overflowed` counts it."""
        return self._slots.get(key) or self._row(key)

    def heartbeat(self, now_s: float) -> None:
        """The owner is alive at `now_s` (monotonic, seconds; the same clock in every process)."""
        self._header[HEARTBEAT_NS] = int(now_s * 1e9)

    def loading(self, version_key: str) -> None:
        """The breadcrumb: this version is being loaded or warmed up."""
        self._crumb(Phase.LOADING, version_key, 0, 0.0, 0, 0)

    def running(
        self, version_key: str, requests: int, kill_at_s: float = 0.0, owner: int = 0, sequence: int = 0
    ) -> None:
        """The breadcrumb: predict runs for `requests` joined requests.

        `kill_at_s` (monotonic, seconds; 0: never): from when on it counts as hung. `owner` and `sequence`:
        the incarnation of the worker that sent the batch, and its number there.
        """
        self._crumb(Phase.RUNNING, version_key, requests, kill_at_s, owner, sequence)

    def idle(self) -> None:
        """The breadcrumb: no model is being run or loaded."""
        self._header[PHASE] = 0

    def close(self) -> None:
        """Give up ownership; the file stays until it is folded. No slot is used afterwards."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mappings keep the file open, and the lock with it
            os.close(self._fd)
            self._fd = -1

    def _crumb(
        self, phase: int, version_key: str, requests: int, kill_at_s: float, owner: int, sequence: int
    ) -> None:
        # Odd while it changes: a reader that sees an odd or another number has not seen one breadcrumb.
        header = self._header
        crumb = header[CRUMB]
        header[CRUMB] = crumb + 1
        if version_key != self._version_key:
            self._text(VERSION_AT, VERSION_LENGTH, version_key)
            self._version_key = version_key
        header[REQUESTS] = requests
        header[KILL_AT_NS] = int(kill_at_s * 1e9)
        header[OWNER] = owner
        header[SEQUENCE] = sequence
        header[PHASE] = phase
        header[CRUMB] = crumb + 2

    def _text(self, at: int, length: int, text: str) -> None:
        data = text.encode()[:TEXT_BYTES]
        self._map[at : at + len(data)] = data
        self._header[length] = len(data)

    def _row(self, key: ArmKey) -> Slot:
        data = msgspec.json.encode(key)
        index = len(self._slots)
        full = index >= self._allocated_rows
        if full and index < self._most_rows:
            try:
                self._map = self._grow(min(self._allocated_rows * 2, self._most_rows))
                full = False
            except OSError:
                full = True  # the disk: nothing is lost, the requests are counted under OTHER
        if full or len(data) > KEY_BYTES:
            self._header[OVERFLOWED] += 1
            return self._other
        at = HEADER_BYTES + index * ROW
        self._map[at + 8 : at + 8 + len(data)] = data
        cells = memoryview(self._map).cast("q")[at // 8 : (at + ROW) // 8]
        slot = self._slots[key] = Slot(key, cells[KEY_CELLS : KEY_CELLS + CELLS])
        cells[0] = len(data)  # publishes the row: readers stop at the first that has no length
        return slot

    def _grow(self, rows: int) -> mmap.mmap:
        # Earlier mappings stay, for the slots that were cut from them; all are views of the same pages.
        size = HEADER_BYTES + rows * ROW
        _reserve(self._fd, size)
        mapped = mmap.mmap(self._fd, size)
        self._allocated_rows = rows
        self._header = memoryview(mapped).cast("q")[: HEADER_BYTES // 8]
        return mapped


def counters_folder(run_folder: Path) -> Path:
    """Where the blocks of a node are."""
    return run_folder / "counters"


def block_path(run_folder: Path, process: str, incarnation: int) -> Path:
    """The file of one incarnation; a name too long for a file system is cut and told apart by its hash.

    Raises: ConfigError if the incarnation is not a positive 63-bit number.
    """
    if not 0 <= incarnation < 2**63:
        raise ConfigError(f"incarnation {incarnation}: want 0 to 2**63 - 1")
    name = process
    if len(process.encode()) > 160:
        head = process.encode()[:140].decode(errors="ignore")
        name = f"{head}~{hashlib.sha256(process.encode()).hexdigest()[:16]}"
    return counters_folder(run_folder) / f"{name}-{incarnation:x}.block"


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    while (have := os.fstat(fd).st_size) < size:  # macOS: written zeros are the only promise of space
        os.pwrite(fd, bytes(min(size - have, 1 << 20)), have)
