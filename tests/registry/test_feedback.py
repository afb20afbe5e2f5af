"""Feedback from a worker's files into the database: each line once, whoever is killed when."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.core.errors import LedgerError, Unavailable
from interlock.core.feedback import Feedback, inbox_folder, newest_incarnation
from interlock.core.request import RequestId
from interlock.registry import feedback
from interlock.registry.feedback import FeedbackStore, feedback_file
from interlock.serving import inbox
from interlock.serving.inbox import Inbox


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    found = FeedbackStore(tmp_path)
    yield found
    found.close()


def said(
    sequence: int, value: float = 1.0, *, arm: int = 0, unit: int | None = None, sent_ms: int = 0
) -> Feedback:
    sent_ms = sent_ms or int(time.time() * 1000)
    return Feedback(RequestId(7, 1, arm, 5, sent_ms, sequence, unit).encode().decode(), "clicked", value)


def all_of(store: FeedbackStore, release: int = 7) -> list[feedback.Scored]:
    far = int(time.time() * 1000) + 10_000
    return store.scored(release, "clicked", (0, ""), far, 10**12, most=10**9)


def test_what_was_written_is_taken_in_once(tmp_path: Path, store: FeedbackStore) -> None:
    box = Inbox(tmp_path, "worker-0", 3)
    box.keep([said(1), said(2, 0.5, arm=1)])
    assert store.take_in() == 2 and store.take_in() == 0
    box.keep([said(3)])
    box.keep([said(3, 9.0)])  # of several values of one name the first stays
    store.take_in()
    assert [(one.arm, one.value) for one in all_of(store)] == [(0, 1.0), (1, 0.5), (0, 1.0)]
    assert store.summary(7) == {"clicked": {0: (2, 1.0), 1: (1, 0.5)}}
    box.close()


def test_files_that_were_read_go_and_the_one_that_is_written_stays(
    tmp_path: Path, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "PART_BYTES", 200)
    box, old = Inbox(tmp_path, "worker-0", 3), Inbox(tmp_path, "worker-0", 2)
    old.keep([said(100)])
    for number in range(20):
        box.keep([said(number)])
    assert len(list(inbox_folder(tmp_path).iterdir())) > 4
    assert store.take_in() == 21
    (left,) = inbox_folder(tmp_path).iterdir()
    assert left.name.startswith("worker-0.0000000000000003.")
    box.keep([said(50)])
    assert store.take_in() == 1 and len(all_of(store)) == 22


def test_a_line_that_was_cut_is_left_and_what_follows_is_in_another_file(
    tmp_path: Path, store: FeedbackStore
) -> None:
    box = Inbox(tmp_path, "worker-0", 3)
    box.keep([said(1)])
    (path,) = inbox_folder(tmp_path).iterdir()
    with path.open("ab") as file:
        file.write(b'["7-1-0')
    store.take_in()
    with path.open("ab") as file:  # no id, no JSON, and what the database cannot hold
        file.write(b'\nnonsense\n["7", "clicked", 1, 2]\n')
        for id in ("f" * 16 + "-1-0-5-9-9", "1-" + "f" * 16 + "-0-5-9-9", "1-1-0-5-9-9-" + "f" * 16):
            file.write(f'["{id}", "clicked", 1, 2]\n'.encode())
        file.write(b'["7-1-0-5-9-9", "clicked", 1, -5]\n["7-01-0-5-9-9", "clicked", 1, 2]\n')
    assert store.take_in() == 0 and len(all_of(store)) == 1


def test_what_lies_beside_the_files_and_releases_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, lambda: 3)
    box = Inbox(tmp_path, "worker-0", 3)
    far = RequestId(3 + feedback.NEW_MEANWHILE + 1, 1, 0, 5, 1000, 1).encode().decode()
    box.keep([said(1), Feedback(far, "clicked", 1.0)])
    (inbox_folder(tmp_path) / "a.b.c").mkdir()
    (inbox_folder(tmp_path) / "notes").write_text("x")
    assert store.take_in() == 1 and len(all_of(store)) == 1 and store.taken_ms > 0
    store.close()


def test_a_database_that_is_as_large_as_it_may_be_takes_nothing_in(
    tmp_path: Path, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inbox(tmp_path, "worker-0", 3).keep([said(1)])
    monkeypatch.setattr(feedback, "MOST_BYTES", 1)
    with pytest.raises(LedgerError, match="no more is taken in"):
        store.take_in()
    monkeypatch.undo()
    assert store.take_in() == 1


def test_a_worker_that_starts_after_the_clock_was_set_back_has_a_later_incarnation(tmp_path: Path) -> None:
    assert newest_incarnation(tmp_path) == 0
    Inbox(tmp_path, "worker-0", 2**62).keep([said(1)])
    (inbox_folder(tmp_path) / "what.ever.else").write_text("")
    assert newest_incarnation(tmp_path) == 2**62


def test_of_a_unit_one_value_counts(tmp_path: Path, store: FeedbackStore) -> None:
    box = Inbox(tmp_path, "worker-0", 3)
    box.keep([said(1, 0.1, unit=9), said(2, 0.2, unit=9), said(3, 0.3, unit=8), said(4, 0.4), said(5, 0.5)])
    store.take_in()
    assert [one.value for one in all_of(store)] == [0.1, 0.3, 0.4, 0.5]
    box.close()


def test_scores_are_of_one_age_and_in_order(tmp_path: Path, store: FeedbackStore) -> None:
    now_ms = int(time.time() * 1000)
    box = Inbox(tmp_path, "worker-0", 3)
    ages = {1: 5_000, 2: 90_000, 3: 20_000, 4: 15_000}
    box.keep([said(number, float(number), sent_ms=now_ms - age) for number, age in ages.items()])
    store.take_in()

    def scored(age_ms: int, after: tuple[int, str] = (0, "")) -> list[float]:
        return [one.value for one in store.scored(7, "clicked", after, now_ms - 10_000, age_ms)]

    assert scored(30_000) == [3.0, 4.0]  # the second came too late, the first is too young
    assert scored(120_000) == [2.0, 3.0, 4.0]
    first = next(iter(store.scored(7, "clicked", (0, ""), now_ms, 120_000)))
    assert scored(120_000, (first.sent_ms, first.id)) == [3.0, 4.0]
    box.close()


def test_old_feedback_is_forgotten(tmp_path: Path, store: FeedbackStore) -> None:
    box = Inbox(tmp_path, "worker-0", 3)
    box.keep([said(1), said(2)])
    store.take_in()
    assert store.prune(int(time.time() * 1000) - 60_000) == 0
    assert store.prune(int(time.time() * 1000) + 60_000) == 2 and not all_of(store)
    box.close()


def test_a_disk_that_takes_nothing_refuses_and_the_next_try_begins_anew(
    tmp_path: Path, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Inbox(tmp_path, "worker-0", 3)
    box.keep([said(1)])
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
    with pytest.raises(Unavailable, match="disk is full"):
        box.keep([said(2)])
    monkeypatch.setattr(os, "write", real)
    box.keep([said(2)])
    store.take_in()
    assert len(all_of(store)) == 2
    monkeypatch.setattr(inbox, "MOST_BYTES", 1)
    monkeypatch.setattr(inbox, "PART_BYTES", 0)
    with pytest.raises(Unavailable, match="wait for control"):
        for number in range(4, 7):
            box.keep([said(number)])


def test_a_database_of_a_later_interlock_is_refused(tmp_path: Path) -> None:
    found = FeedbackStore(tmp_path)
    with found._database.write() as connection:
        connection.exec_driver_sql("PRAGMA user_version = 99")
    found.close()
    with pytest.raises(LedgerError, match="schema 99"):
        FeedbackStore(tmp_path)
    assert feedback_file(tmp_path).exists()


WRITER = """
import sys, time
from pathlib import Path
from interlock.core.feedback import Feedback
from interlock.core.request import RequestId
from interlock.serving.inbox import Inbox
from interlock.serving import inbox
inbox.PART_BYTES = 3000
home, incarnation = Path(sys.argv[1]), int(sys.argv[2])
box = Inbox(home, "worker-0", incarnation)
for number in range(10**6):
    id = RequestId(7, 1, 0, incarnation, int(time.time() * 1000), number).encode().decode()
    box.keep([Feedback(id, "clicked", 1.0)])
    print(number, flush=True)
"""
READER = """
import sys, time
from pathlib import Path
from interlock.registry import feedback
from interlock.registry.feedback import FeedbackStore
feedback._CHUNK_BYTES = 500
store = FeedbackStore(Path(sys.argv[1]))
print("up", flush=True)
while True:
    store.take_in()
"""


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost_or_counts_twice_whoever_is_killed(tmp_path: Path) -> None:
    chance = random.Random(4)
    acknowledged = 0

    def start(code: str, *args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), *args], stdout=subprocess.PIPE, text=True
        )

    reader = start(READER)
    assert reader.stdout is not None and reader.stdout.readline()
    for incarnation in range(1, 7):
        writer = start(WRITER, str(incarnation))
        assert writer.stdout is not None
        last = int(writer.stdout.readline())
        until_s = time.monotonic() + chance.uniform(0.1, 0.4)
        while time.monotonic() < until_s:
            last = int(writer.stdout.readline())
        if incarnation % 2:
            reader.send_signal(signal.SIGKILL)
            reader.communicate()
            reader = start(READER)
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        acknowledged += (int(rest[-1]) if rest else last) + 1
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    store = FeedbackStore(tmp_path)
    store.take_in()
    found = all_of(store)
    store.close()
    # Of each writer, the line that it was at may have been written and not told.
    assert acknowledged <= len(found) <= acknowledged + 6
    assert len({one.id for one in found}) == len(found)
