"""Holds the counters to their promise: no kill, of the owner or of the folder, loses or doubles a count.

Past 400 lines because what is written, killed and folded is held against the same blocks, schema by schema.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from array import array
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from interlock.core.errors import ConfigError, LedgerError, SchemaTooNew
from interlock.core.route import COPY_ARM
from interlock.core.state import BOUNDS_S, ArmCounts, ArmKey, PairCounts
from interlock.serving import block as layout
from interlock.serving import counters
from interlock.serving.counters import OTHER, Block, Phase, abandoned, fold, read_all, read_block
from tests.thorough import examples

pytestmark = pytest.mark.slow

KEY = ArmKey(model="iris", version="1", release=7, epoch=2, arm=1)
KEYS = [ArmKey(model="m", version=str(k % 2), release=k, epoch=0, arm=0) for k in range(3)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "worker-0", 0xABC)
    assert block.path == tmp_path / "counters" / "worker-0-abc.block"
    slot = block.slot(KEY)
    assert block.slot(KEY) is slot
    slot.dispatched()
    slot.dispatched()
    slot.dispatched()
    slot.settled_ok(0.002, 0.0005)
    slot.settled(counters.TIMED_OUT, 1.0)
    slot.all_ok([9.997, 9.996], 9.997, 10.0)
    slot.refused()
    slot.batch(rows=5, compute_s=0.001)
    block.heartbeat(12.5)
    view = read_block(block.path)
    assert view is not None
    assert (view.process, view.pid, view.incarnation) == ("worker-0", os.getpid(), 0xABC)
    assert (view.heartbeat_s, view.phase, view.overflowed) == (12.5, Phase.IDLE, 0)
    counts = view.counts[KEY]
    assert (counts.dispatched, counts.ok, counts.timed_out, counts.refused) == (3, 3, 1, 1)
    assert (counts.rows, counts.batches, counts.compute_ns) == (5, 1, 1_000_000)
    assert counts.total.count == 4 and counts.total.sum_s == pytest.approx(1.009)
    assert counts.not_ok_ns == 1_000_000_000 and counts.ok_s == pytest.approx(0.009)
    assert counts.queue.count == 3 and counts.queue.sum_s == pytest.approx(0.0015)
    assert counts.compute.quantile(0.5) == pytest.approx(0.001, rel=0.2)


@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=40), st.floats(0.0, 3.0))
def test_counting_a_batch_is_counting_its_requests(waits_s: list[float], compute_s: float) -> None:
    started_s, now = 1000.0, 1000.0 + compute_s
    arrived_s = [started_s - wait_s for wait_s in waits_s]
    durations = [now - since for since in arrived_s] + [started_s - since for since in arrived_s]
    # At the edge of a bucket the two ways may round to either side.
    assume(all(abs(duration - bound) > 1e-9 for duration in durations for bound in BOUNDS_S))
    with tempfile.TemporaryDirectory() as folder:
        block = Block.create(Path(folder), "worker-0", 1)
        one_by_one, together = block.slot(KEYS[0]), block.slot(KEYS[1])
        for since in arrived_s:
            one_by_one.settled_ok(now - since, started_s - since)
        together.all_ok(arrived_s, started_s, now)
        view = read_block(block.path)
        block.close()
    assert view is not None
    expected, got = view.counts[KEYS[0]], view.counts[KEYS[1]]
    assert (got.ok, got.total.counts, got.queue.counts) == (
        expected.ok,
        expected.total.counts,
        expected.queue.counts,
    )
    assert got.total.sum_s == pytest.approx(expected.total.sum_s, abs=1e-6 * len(waits_s))
    assert got.queue.sum_s == pytest.approx(expected.queue.sum_s, abs=1e-6 * len(waits_s))


def test_the_breadcrumb(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "x", 1)
    block.loading("m/1@abc")
    assert _crumb(block) == (Phase.LOADING, "m/1@abc", 0, 0.0, 0, 0)
    block.running("m/22@abc", requests=3, kill_at_s=99.5, owner=2**62, sequence=17)
    assert _crumb(block) == (Phase.RUNNING, "m/22@abc", 3, 99.5, 2**62, 17)
    block.idle()
    assert _crumb(block)[0] is Phase.IDLE
    block.running("m/3@" + "é" * 2000, requests=1)
    assert _crumb(block)[1].startswith("m/3@é")


def test_a_breadcrumb_half_written_is_no_breadcrumb(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "x", 1)
    block.running("m/1@abc", requests=1, kill_at_s=5.0)
    block._header[layout.CRUMB] += 1  # the owner was killed between two stores
    assert _crumb(block) == (Phase.IDLE, "", 0, 0.0, 0, 0)


def _crumb(block: Block) -> tuple[Phase, str, int, float, int, int]:
    view = read_block(block.path, counts=False)
    assert view is not None
    assert view.counts == {}
    return view.phase, view.version_key, view.requests, view.kill_at_s, view.owner, view.sequence


def test_rows_are_added_while_slots_are_in_use_and_the_last_is_for_all_others(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "w", 1, rows=2, most_rows=7)
    slots = []
    for release in range(9):
        slots.append(block.slot(ArmKey("m", "1", release, 0, 0)))
        for slot in slots:
            slot.dispatched()
    view = read_block(block.path)
    assert view is not None
    assert view.counts[ArmKey("m", "1", 0, 0, 0)].dispatched == 9
    assert view.counts[ArmKey("m", "1", 5, 0, 0)].dispatched == 4
    assert view.counts[OTHER].dispatched == 3 + 2 + 1
    assert view.overflowed == 3


def test_a_key_too_long_for_a_row_counts_as_other(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "w", 1)
    block.slot(ArmKey("m", "9" * 2000, 0, 0, 0)).dispatched()
    assert read_all(tmp_path)[OTHER].dispatched == 1


def test_names_too_long_for_a_file_stay_apart(tmp_path: Path) -> None:
    paths = {Block.create(tmp_path, "x-" + "é" * 126 + tail, 1).path for tail in ("1", "2")}
    assert len(paths) == 2
    assert {view.process[-1] for path in paths if (view := read_block(path))} == {"1", "2"}


def test_an_incarnation_is_used_once(tmp_path: Path) -> None:
    Block.create(tmp_path, "w", 1)
    with pytest.raises(ConfigError, match="was used before"):
        Block.create(tmp_path, "w", 1)
    with pytest.raises(ConfigError, match="63"):
        Block.create(tmp_path, "w", 2**63)


def test_a_file_that_cannot_grow_is_an_error_at_create_and_other_later(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, pathlib; from interlock.serving.counters import Block\n"
        "from interlock.core.state import ArmKey\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "run = pathlib.Path(sys.argv[1])\n"
        "try:\n    Block.create(run, 'w', 1, rows=64)\nexcept OSError as e:\n    print('refused', e.errno)\n"
        "small = Block.create(run, 'w', 2, rows=2)\n"
        "for r in range(5):\n    small.slot(ArmKey('m', '1', r, 0, 0)).dispatched()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("refused")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000
    assert sum(counts.dispatched for counts in read_all(tmp_path).values()) == 5
    assert read_all(tmp_path)[OTHER].dispatched == 2  # 4 rows fit into 20,000 bytes


@pytest.mark.parametrize("cut", [0, 7, 4095, 4096, 5000])
def test_a_block_cut_short_is_none_or_empty_and_folding_it_is_harmless(tmp_path: Path, cut: int) -> None:
    block = Block.create(tmp_path, "w", 1)
    block.slot(KEY).dispatched()
    foreign = block.path.with_name("foreign-1.block")
    foreign.write_bytes(block.path.read_bytes()[:cut])
    view = read_block(foreign)
    assert view is None or view.counts == {}
    fold(tmp_path, foreign)
    assert not foreign.exists()
    assert read_all(tmp_path)[KEY].dispatched == 1


def test_a_foreign_file_is_moved_away_and_kept(tmp_path: Path) -> None:
    Block.create(tmp_path, "w", 1)
    foreign = tmp_path / "counters" / "y-1.block"
    foreign.write_bytes(b"something else" * 1000)
    assert read_block(foreign) is None
    assert read_all(tmp_path) == {}
    fold(tmp_path, foreign)
    assert foreign.with_suffix(".unreadable").read_bytes().startswith(b"something else")
    assert read_block(tmp_path / "gone") is None


def test_a_live_block_is_not_folded(tmp_path: Path) -> None:
    block = Block.create(tmp_path, "w", 1)
    assert abandoned(tmp_path) == []
    with pytest.raises(ConfigError, match="lives"):
        fold(tmp_path, block.path)
    block.close()
    assert abandoned(tmp_path) == [block.path]
    fold(tmp_path, block.path)
    assert abandoned(tmp_path) == []
    fold(tmp_path, block.path)


def test_old_arms_are_merged_into_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MOST_RETIRED", 10)
    for incarnation in range(3):
        block = Block.create(tmp_path, "w", incarnation)
        for release in range(8):
            block.slot(ArmKey("m", "1", incarnation * 8 + release, 0, 0)).dispatched()
        block.close()
        fold(tmp_path, block.path)
    totals = read_all(tmp_path)
    assert len(totals) <= 10
    assert sum(counts.lost for counts in totals.values()) == 24
    assert totals[ArmKey("m", "1", 23, 0, 0)].dispatched == 1


def test_an_answer_that_could_not_be_sent_is_a_failure_with_its_duration(tmp_path: Path) -> None:
    slot = Block.create(tmp_path, "worker-0", 1).slot(KEY)
    slot.dispatched(2)
    slot.settled_ok(0.25, 0.0)
    slot.settled_ok(0.5, 0.0)
    slot.unsent(0.5)
    counts = read_all(tmp_path)[KEY]
    assert (counts.ok, counts.failed, counts.not_ok_ns, counts.ok_s) == (1, 1, 500_000_000, 0.25)


SCHEMA_1_KEY = b'{"model":"m","version":"1","release":3,"epoch":0,"arm":0}'
SCHEMA_1_CELLS = [6, 1, 1, 1, 1, 2, 60, 3, 2_500, *[0] * 96, 10, 9_000, *[0] * 96, 6, 5_000, *[0] * 96, 3]
SCHEMA_1_CELLS += [2_500, 11]
"""One row as the first schema had it: nine counts, three histograms with their sums, dispatched."""


def test_what_the_first_schema_counted_is_kept(tmp_path: Path) -> None:
    """An upgrade loses neither the retired totals nor the blocks of the processes that ran before it."""
    folder = tmp_path / "counters"
    folder.mkdir()
    key, cells = SCHEMA_1_KEY.decode(), ",".join(map(str, SCHEMA_1_CELLS))
    (folder / "retired.json").write_text(
        f'{{"folded":[],"arms":[{{"key":{key},"lost":4,"cells":[{cells}]}}],"schema":1}}'
    )
    header = array("q", [0] * 512)
    header[layout.MAGIC_AT], header[layout.SCHEMA_AT], header[layout.ROW_BYTES] = layout.MAGIC, 1, 3456
    row = array("q", [len(SCHEMA_1_KEY), *[0] * 127, *SCHEMA_1_CELLS]).tobytes()
    row = row[:8] + SCHEMA_1_KEY + row[8 + len(SCHEMA_1_KEY) :]
    old = folder / "worker-0-1.block"
    old.write_bytes(header.tobytes() + row + bytes(3456))
    arm = ArmKey("m", "1", 3, 0, 0)
    for lost in (4, 5):  # before and after the fold
        counts = read_all(tmp_path)[arm]
        assert (counts.dispatched, counts.ok, counts.refused, counts.lost) == (22, 12, 4, lost)
        assert (counts.invalid, counts.failed, counts.timed_out, counts.cancelled) == (2, 2, 2, 2)
        assert (counts.rows, counts.batches, counts.compute_ns, counts.not_ok_ns) == (120, 6, 5_000, 0)
        assert [h.count for h in (counts.total, counts.queue, counts.compute)] == [20, 12, 6]
        assert counts.total.sum_s == counts.ok_s == pytest.approx(18e-6)
        fold(tmp_path, old)
    assert not old.exists()
    assert b'"schema":3' in (folder / "retired.json").read_bytes()


def test_what_the_second_schema_counted_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "counters"
    folder.mkdir()
    cells = [*SCHEMA_1_CELLS[:9], 700, *SCHEMA_1_CELLS[9:]]
    header = array("q", [0] * 512)
    header[layout.MAGIC_AT], header[layout.SCHEMA_AT], header[layout.ROW_BYTES] = layout.MAGIC, 2, 3584
    row = array("q", [len(SCHEMA_1_KEY), *[0] * 127, *cells, *[0] * 15]).tobytes()
    assert len(row) == 3584
    old = folder / "worker-0-1.block"
    old.write_bytes(header.tobytes() + row[:8] + SCHEMA_1_KEY + row[8 + len(SCHEMA_1_KEY) :])
    for lost in (0, 1):
        counts = read_all(tmp_path)[ArmKey("m", "1", 3, 0, 0)]
        assert (counts.dispatched, counts.ok, counts.not_ok_ns, counts.lost) == (11, 6, 700, lost)
        assert counts.pairs == PairCounts() and counts.compute.count == 3
        fold(tmp_path, old)


def test_pairs_are_read_folded_and_merged(tmp_path: Path) -> None:
    expected = PairCounts(*range(1, 15))
    for incarnation in (1, 2):
        block = Block.create(tmp_path, "worker-0", incarnation)
        for cell, value in zip(range(layout.PAIRS, layout.DISPATCHED), range(1, 15), strict=True):
            block.slot(KEY).cells[cell] += value
        assert layout.UNSHIELDED == layout.DISPATCHED - 1
        block.close()
    for path in (None, *sorted((tmp_path / "counters").glob("*.block"))):
        if path is not None:
            fold(tmp_path, path)
        assert read_all(tmp_path)[KEY].pairs == expected.merge(expected)


def test_old_copies_are_never_merged_into_what_clients_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "MOST_RETIRED", 4)
    block = Block.create(tmp_path, "w", 1)
    for release in range(9):
        block.slot(ArmKey("m", "1", release, 0, 1)).dispatched()
        block.slot(ArmKey("m", "1", release, 0, COPY_ARM)).dispatched(10)
    block.close()
    fold(tmp_path, block.path)
    totals = read_all(tmp_path)
    assert len(totals) <= 4
    assert sum(counts.lost for key, counts in totals.items() if key.arm == COPY_ARM) == 90
    assert sum(counts.lost for key, counts in totals.items() if key.arm != COPY_ARM) == 9


def test_retired_totals_that_cannot_be_understood_are_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "counters"
    folder.mkdir()
    (folder / "retired.json").write_text('{"schema": 99}')
    with pytest.raises(SchemaTooNew, match="99"):
        read_all(tmp_path)
    row = f'{{"key":{SCHEMA_1_KEY.decode()},"lost":0,"cells":[1,2]}}'
    (folder / "retired.json").write_text(f'{{"arms":[{row}],"schema":2}}')
    with pytest.raises(LedgerError, match="a row of 2 cells, which schema 2 does not have"):
        read_all(tmp_path)
    (folder / "retired.json").write_text("{")
    with pytest.raises(LedgerError, match="move it away"):
        read_all(tmp_path)


CHILD = """
import pathlib, signal, sys
from interlock.core.state import ArmKey
from interlock.serving.counters import Block
block = Block.create(pathlib.Path(sys.argv[1]), "child", int(sys.argv[2]))
slot = block.slot(ArmKey("m", "0", 0, 0, 0))
for _ in range(int(sys.argv[3])):
    slot.dispatched()
    slot.settled_ok(0.001, 0.0)
for _ in range(int(sys.argv[4])):
    slot.dispatched()
print("ready", flush=True)
while sys.argv[5] == "busy":
    slot.dispatched()
    slot.settled_ok(0.001, 0.0)
signal.pause()
"""


def _killed_child(run: Path, incarnation: int, settled: int, in_flight: int, how: str) -> None:
    arguments = [str(run), str(incarnation), str(settled), str(in_flight), how]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_killed_in_the_middle_of_counting(tmp_path: Path) -> None:
    for incarnation in range(3):
        _killed_child(tmp_path, incarnation, 100, 5, "busy")
    for path in abandoned(tmp_path):
        fold(tmp_path, path)
    counts = read_all(tmp_path)[ArmKey("m", "0", 0, 0, 0)]
    assert counts.ok >= 300
    assert counts.lost == counts.dispatched - counts.ok
    assert 15 <= counts.lost <= 18


WRITER = """
import pathlib, sys
from interlock.core.state import ArmKey
from interlock.serving.counters import Block
block = Block.create(pathlib.Path(sys.argv[1]), "writer", 1)
slot = block.slot(ArmKey("m", "0", 0, 0, 0))
print("ready", flush=True)
n = 0
while True:
    n += 1
    slot.dispatched()
    block.running("model-%d/1@abc" % (n % 3), n % 3, float(n % 3), n % 3, n)
    slot.settled_ok(0.001, 0.0)
"""


def test_a_reading_never_mixes_two_breadcrumbs_nor_shows_more_settled_than_dispatched(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    seen = set()
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
        for _ in range(3000):
            view = read_block(counters.block_path(tmp_path, "writer", 1))
            assert view is not None
            if view.phase is Phase.RUNNING:
                seen.add(view.requests)
                assert view.version_key == f"model-{view.requests}/1@abc"
                assert view.kill_at_s == view.requests == view.owner == view.sequence % 3
            for counts in view.counts.values():
                assert counts.ok <= counts.dispatched
        child.kill()
        child.wait()
    assert seen == {0, 1, 2}


FOLDER = """
import os, pathlib, signal, sys
from interlock.serving import counters
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "before-replace":
    pathlib.Path.rename = die
elif sys.argv[3] == "before-unlink":
    pathlib.Path.unlink = die
elif sys.argv[3] == "half-written":
    os.fsync = die
counters.fold(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""
STAGES = ["before-replace", "before-unlink", "half-written", "not"]


def _fold_elsewhere(run: Path, dead: Path, stage: str, folded: bool = False) -> None:
    done = subprocess.run([sys.executable, "-c", FOLDER, str(run), str(dead), stage])
    reached = stage == "before-unlink" or (stage != "not" and not folded)
    assert done.returncode == (-signal.SIGKILL if reached else 0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_killed_at_each_stage(tmp_path: Path, stage: str) -> None:
    _killed_child(tmp_path, 1, 10, 2, "pause")
    (dead,) = abandoned(tmp_path)
    before = read_all(tmp_path)[ArmKey("m", "0", 0, 0, 0)]
    _fold_elsewhere(tmp_path, dead, stage)
    between = read_all(tmp_path)[ArmKey("m", "0", 0, 0, 0)]
    assert (between.dispatched, between.ok) == (before.dispatched, before.ok) == (12, 10)
    fold(tmp_path, dead)
    after = read_all(tmp_path)[ArmKey("m", "0", 0, 0, 0)]
    assert (after.dispatched, after.ok, after.lost) == (12, 10, 2)
    assert not dead.exists()


class CountersUnderKill(RuleBasedStateMachine):
    """Random increments, deaths, folds and deaths of the folder, against a plain Counter."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.run = Path(self.folder.name)
        self.incarnation = 0
        self.live: list[Block] = []
        self.in_flight: dict[tuple[str, ArmKey], int] = Counter()
        self.dead: list[Path] = []
        self.folded: set[Path] = set()
        self.want: Counter[tuple[ArmKey, str]] = Counter()
        self.subprocesses = 0

    def teardown(self) -> None:
        for block in self.live:
            block.close()
        self.folder.cleanup()

    @rule()
    def start(self) -> None:
        self.incarnation += 1
        self.live.append(Block.create(self.run, "worker", self.incarnation, rows=1, most_rows=4))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), key=st.sampled_from(KEYS), times=st.integers(1, 5))
    def dispatch(self, data: st.DataObject, key: ArmKey, times: int) -> None:
        block = data.draw(st.sampled_from(self.live))
        for _ in range(times):
            block.slot(key).dispatched()
        self.in_flight[block.path.name, key] += times
        self.want[key, "dispatched"] += times

    @precondition(lambda self: self.live)
    @rule(data=st.data(), key=st.sampled_from(KEYS), kind=st.sampled_from(["ok", "failed", "cancelled"]))
    def settle(self, data: st.DataObject, key: ArmKey, kind: str) -> None:
        block = data.draw(st.sampled_from(self.live))
        if self.in_flight[block.path.name, key]:
            self.in_flight[block.path.name, key] -= 1
            block.slot(key).settled(getattr(counters, kind.upper(), layout.OK), 0.001)
            self.want[key, kind] += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.live))
        self.live.remove(block)
        block.close()  # what the kernel does for a killed process
        self.dead.append(block.path)

    @precondition(lambda self: self.subprocesses < 1)
    @rule(settled=st.integers(0, 20), in_flight=st.integers(0, 5))
    def be_killed(self, settled: int, in_flight: int) -> None:
        self.subprocesses += 1
        self.incarnation += 1
        _killed_child(self.run, self.incarnation, settled, in_flight, "pause")
        path = counters.block_path(self.run, "child", self.incarnation)
        key = ArmKey("m", "0", 0, 0, 0)
        self.dead.append(path)
        self.in_flight[path.name, key] += in_flight
        self.want[key, "dispatched"] += settled + in_flight
        self.want[key, "ok"] += settled

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), twice=st.booleans())
    def fold(self, data: st.DataObject, twice: bool) -> None:
        path = data.draw(st.sampled_from(self.dead))
        self.dead.remove(path)
        for _ in range(1 + twice):
            fold(self.run, path)
        self._lost(path)

    @precondition(lambda self: self.dead and self.subprocesses < 3)
    @rule(data=st.data(), stage=st.sampled_from(STAGES[:3]))
    def fold_and_be_killed(self, data: st.DataObject, stage: str) -> None:
        self.subprocesses += 1
        path = data.draw(st.sampled_from(self.dead))
        _fold_elsewhere(self.run, path, stage, folded=path in self.folded)
        if path in self.folded and stage != "before-unlink":
            self.dead.remove(path)
        elif stage == "before-unlink":
            self.folded.add(path)
            self._lost(path)

    def _lost(self, path: Path) -> None:
        for key in KEYS:
            self.want[key, "lost"] += self.in_flight.pop((path.name, key), 0)

    @invariant()
    def totals_are_the_models(self) -> None:
        totals = read_all(self.run)
        for key in KEYS:
            counts = totals.get(key, ArmCounts())
            for name in ("dispatched", "ok", "failed", "cancelled", "lost"):
                assert getattr(counts, name) == self.want[key, name], (key, name)


TestCountersUnderKill = CountersUnderKill.TestCase
TestCountersUnderKill.settings = settings(
    max_examples=examples(12), stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
