"""Holds the ledger: legal steps, changes and events together, migrations, nothing acknowledged lost."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from interlock.core.errors import (
    ConfigError,
    LedgerError,
    ModelNotFound,
    ReleaseRefused,
    SchemaTooNew,
    VersionNotFound,
)
from interlock.core.fault import Fault, selftest_model
from interlock.core.model import ModelSettings, Signature, TensorSpec, Version
from interlock.core.policy import Policy
from interlock.core.provenance import Provenance, Quality
from interlock.evidence.exceedance import Cut
from interlock.registry import schema
from interlock.registry.ledger import Ledger
from interlock.registry.rows import NEXT_STATES, RampEpoch, ReleaseRow, ReleaseState

STEPS = (ReleaseState.PREPARING, ReleaseState.SWITCHING, ReleaseState.DONE)


def version(number: str = "1", model: str = "iris", digest: str = "a") -> Version:
    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1,)),))
    return Version(model, number, f"sha256:{digest * 64}", "onnx", "model.onnx", signature)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db", busy_timeout_s=10.0)
    yield opened
    opened.close()


def finish(ledger: Ledger, row: ReleaseRow) -> None:
    for state in STEPS:
        ledger.advance(row.id, state, time_s=3.0)


def test_a_version_comes_back_as_it_was_put(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    ledger.put_version(version(), 2.0)
    assert ledger.version("iris", "1") == version()
    assert ledger.version("iris", "2") is None
    assert ledger.versions() == ledger.versions("iris") == [version()]
    assert ledger.created_s("iris", "1") == 1.0
    assert [event.kind for event in ledger.events()] == ["version.registered"]


def test_a_record_of_an_interlock_that_knew_fewer_fields_is_the_same_version(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    database = sqlite3.connect(ledger.path)
    with database:
        (record,) = database.execute("SELECT record FROM versions").fetchone()
        older = {key: value for key, value in json.loads(record).items() if key != "fault"}
        database.execute("UPDATE versions SET record = ?", (json.dumps(older),))
    database.close()
    ledger.put_version(version(), 2.0)
    assert ledger.version("iris", "1") == version()


def test_a_version_with_a_fault_is_recorded_of_no_model_but_a_self_tests(ledger: Ledger) -> None:
    faulty = msgspec.structs.replace(version(), fault=Fault("fail", 0.1))
    with pytest.raises(ConfigError, match="only a self-test's own model"):
        ledger.put_version(faulty, 1.0)
    assert ledger.versions() == [] and ledger.events() == []
    hidden = msgspec.structs.replace(faulty, model=selftest_model("iris"))
    ledger.put_version(hidden, 1.0)
    assert ledger.version("iris:selftest", "1") == hidden


def test_a_forgotten_model_leaves_its_events_alone(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    ledger.put_version(version(model="other"), 1.0)
    kept = ledger.request_release("other", "1", "now", 1.0)
    row = ledger.request_release("iris", "1", "canary", 1.0, policy=Policy())
    with pytest.raises(ReleaseRefused, match="in use"):
        ledger.forget("iris", 2.0)
    ledger.advance(row.id, ReleaseState.PREPARING, time_s=2.0)
    ledger.advance(row.id, ReleaseState.RAMPING, time_s=2.0, epoch=RampEpoch(1, 0.1, (), 2.0))
    ledger.advance(row.id, ReleaseState.SWITCHING, time_s=2.0)
    ledger.advance(row.id, ReleaseState.DONE, time_s=2.0)
    with pytest.raises(ReleaseRefused, match="in use"):
        ledger.forget("iris", 3.0)
    ledger.set_live("iris", None, 3.0)
    before, stood = len(ledger.events("iris")), ledger.data_version()
    ledger.forget("iris", 4.0)
    assert [model.name for model in ledger.models()] == ["other"]
    assert ledger.versions("iris") == [] and ledger.epochs(row.id) == () and ledger.releases() == [kept]
    assert len(ledger.events("iris")) == before + 1 and ledger.changed(stood)
    ledger.put_version(version(), 5.0)  # the name can be used again, and no number is given out twice
    assert ledger.request_release("iris", "1", "now", 5.0).id > row.id


def test_a_version_is_immutable(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    with pytest.raises(LedgerError, match="immutable"):
        ledger.put_version(version(digest="b"), 2.0)
    ledger.put_version(version(digest="b"), 2.0, replace=True)
    finish(ledger, ledger.request_release("iris", "1", "now", 2.0))
    with pytest.raises(LedgerError, match="immutable"):
        ledger.put_version(version(digest="c"), 3.0, replace=True)
    assert ledger.version("iris", "1") == version(digest="b")


def test_settings(ledger: Ledger) -> None:
    with pytest.raises(ModelNotFound):
        ledger.put_settings("iris", ModelSettings(), 1.0)
    ledger.put_version(version(), 1.0)
    ledger.put_settings("iris", ModelSettings(queue_rows=7), 2.0)
    model = ledger.model("iris")
    assert model is not None and model.settings.queue_rows == 7
    assert ledger.models() == [model] and ledger.model("nobody") is None


def test_a_release_becomes_live_when_done(ledger: Ledger) -> None:
    ledger.put_version(version("1"), 1.0)
    ledger.put_version(version("2"), 1.0)
    first = ledger.request_release("iris", "1", "now", 2.0)
    assert first.previous_number is None and ledger.live("iris") is None
    assert ledger.open_releases() == [first]
    ledger.advance(first.id, "preparing", snapshot={"workers": 2}, time_s=2.5)
    ledger.advance(first.id, "switching", time_s=2.6)
    assert ledger.live("iris") is None
    done = ledger.advance(first.id, "done", time_s=2.7)
    assert done.finished_s == 2.7 and ledger.live("iris") == done and ledger.open_releases() == []
    second = ledger.request_release("iris", "2", "now", 4.0)
    assert second.previous_number == "1" and ledger.live("iris") == done
    ledger.advance(second.id, "failed", "it does not load", time_s=5.0)
    assert ledger.live("iris") == done and ledger.release(second.id).reason == "it does not load"
    assert [row.id for row in ledger.releases("iris")] == [second.id, first.id]
    kinds = [event.kind for event in ledger.events("iris")]
    assert kinds[2:] == [
        "release.requested",
        "release.preparing",
        "release.switching",
        "release.done",
        "release.requested",
        "release.failed",
    ]
    assert ledger.events("iris")[3].body["snapshot"] == {"workers": 2}


def test_two_releases_of_a_model_are_never_open_together(ledger: Ledger) -> None:
    ledger.put_version(version("1"), 1.0)
    ledger.put_version(version("1", model="other"), 1.0)
    with pytest.raises(VersionNotFound):
        ledger.request_release("iris", "9", "now", 1.0)
    first = ledger.request_release("iris", "1", "now", 2.0)
    with pytest.raises(ReleaseRefused, match=rf"release {first.id} of 'iris' .* still requested"):
        ledger.request_release("iris", "1", "now", 3.0)
    ledger.request_release("other", "1", "now", 3.0)
    second = ledger.request_release("iris", "1", "now", 4.0, supersede=True)
    assert ledger.release(first.id).state is ReleaseState.SUPERSEDED
    assert [row.id for row in ledger.open_releases() if row.model == "iris"] == [second.id]


@pytest.mark.parametrize("state", list(ReleaseState))
@pytest.mark.parametrize("wanted", list(ReleaseState))
def test_only_legal_steps(ledger: Ledger, state: ReleaseState, wanted: ReleaseState) -> None:
    ledger.put_version(version(), 1.0)
    row = ledger.request_release("iris", "1", "now", 1.0)
    ramping = (ReleaseState.PREPARING, ReleaseState.RAMPING)
    path = {
        ReleaseState.REQUESTED: (),
        ReleaseState.PREPARING: STEPS[:1],
        ReleaseState.RAMPING: ramping,
        ReleaseState.PAUSED: (*ramping, ReleaseState.PAUSED),
        ReleaseState.PASSED: (*ramping, ReleaseState.PASSED),
        ReleaseState.ROLLING_BACK: (*ramping, ReleaseState.ROLLING_BACK),
        ReleaseState.SWITCHING: STEPS[:2],
        ReleaseState.KEEPING: (*STEPS[:2], ReleaseState.KEEPING),
        ReleaseState.DONE: STEPS,
    }
    for step in path.get(state, (state,)):
        ledger.advance(row.id, step, time_s=2.0)
    before = ledger.data_version()
    if wanted in NEXT_STATES[state]:
        assert ledger.advance(row.id, wanted, time_s=3.0).state is wanted
        return
    with pytest.raises(LedgerError, match=f"is {state} and cannot become {wanted}"):
        ledger.advance(row.id, wanted, time_s=3.0)
    assert ledger.release(row.id).state is state and ledger.data_version() == before


def test_the_live_release_is_of_the_same_model(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    ledger.put_version(version(model="other"), 1.0)
    row = ledger.request_release("iris", "1", "now", 1.0)
    with pytest.raises(LedgerError, match="not of model 'other'"):
        ledger.set_live("other", row.id, 2.0)
    ledger.set_live("iris", row.id, 2.0)
    ledger.set_live("iris", None, 3.0)
    assert ledger.live("iris") is None


@pytest.mark.parametrize("sql", ["DELETE FROM events", "UPDATE events SET kind = 'x'"])
def test_the_event_log_is_append_only(ledger: Ledger, sql: str) -> None:
    ledger.append_event("node.up", {"workers": 1}, model=None, time_s=1.0)
    with sqlite3.connect(ledger.path) as other, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(sql)
    other.close()
    assert len(ledger.events()) == 1


def test_events_are_read_in_order_and_in_parts(ledger: Ledger) -> None:
    for index in range(5):
        ledger.append_event("tick", {"index": index}, model="a" if index % 2 else None, time_s=float(index))
    assert [event.body["index"] for event in ledger.events(after_seq=2, limit=2)] == [2, 3]
    assert [event.body["index"] for event in ledger.events("a")] == [1, 3]
    assert [event.body["index"] for event in ledger.latest_events(limit=2)] == [3, 4]


def test_another_process_sees_that_something_changed(ledger: Ledger) -> None:
    other = Ledger(ledger.path)
    stood = ledger.data_version()
    assert not ledger.changed(stood)
    other.put_version(version(), 1.0)
    other.close()
    assert ledger.changed(stood)


def test_revisions_only_grow_and_the_node_keeps_its_id(ledger: Ledger) -> None:
    other = Ledger(ledger.path)
    assert [ledger.next_revision(), other.next_revision(), ledger.next_revision()] == [1, 2, 3]
    assert other.revision() == 3 and other.node_id() == ledger.node_id()
    other.close()


def test_threads_and_processes_write_at_once(ledger: Ledger) -> None:
    other = Ledger(ledger.path, busy_timeout_s=10.0)
    seen: list[int] = []

    def write(target: Ledger) -> None:
        seen.extend(target.next_revision() for _ in range(20))

    threads = [threading.Thread(target=write, args=(target,)) for target in (ledger, other, ledger, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(seen) == list(range(1, 81))


MORE = (*schema.MIGRATIONS, ("ALTER TABLE models ADD COLUMN owner TEXT", "CREATE TABLE extra (id {auto_id})"))


@pytest.mark.parametrize("start", range(1, len(MORE)))
def test_it_migrates_from_each_older_schema(tmp_path: Path, start: int) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path, migrations=MORE[:start]).close()
    with sqlite3.connect(path) as raw:  # as that Interlock did: this one writes the newest columns
        raw.execute("INSERT INTO models (name, settings) VALUES ('iris', '{}')")
        raw.execute(
            "INSERT INTO versions (model, number, record, created_s) VALUES ('iris', '1', ?, 1.0)",
            [msgspec.json.encode(version()).decode()],
        )
    raw.close()
    new = Ledger(path, migrations=MORE)
    assert new.version("iris", "1") == version()
    new.close()
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(len(MORE),)]
        assert "owner" in [row[1] for row in raw.execute("PRAGMA table_info(models)")]
    raw.close()


def test_a_failed_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    broken = (*schema.MIGRATIONS, ("CREATE TABLE half (id {auto_id})", "CREATE NONSENSE"))
    with pytest.raises(LedgerError, match="nothing was changed"):
        Ledger(path, migrations=broken)
    again = Ledger(path)
    again.put_version(version(), 1.0)
    again.close()
    with sqlite3.connect(path) as raw:
        assert not raw.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()
    raw.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db", migrations=MORE).close()
    with pytest.raises(SchemaTooNew, match="upgrade Interlock"):
        Ledger(tmp_path / "ledger.db")


def test_the_migrations_make_the_tables_that_the_queries_name(ledger: Ledger) -> None:
    inspector = sa.inspect(sa.create_engine(f"sqlite:///{ledger.path}"))
    for table in schema.metadata.tables.values():
        assert [column["name"] for column in inspector.get_columns(table.name)] == [
            c.name for c in table.columns
        ]


def test_a_locked_ledger_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", busy_timeout_s=0.05)
    holder = sqlite3.connect(ledger.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="another process holds it"):
        ledger.append_event("tick", {}, model=None, time_s=1.0)
    assert ledger.events() == []  # readers do not wait for writers
    holder.execute("ROLLBACK")
    holder.close()
    ledger.append_event("tick", {}, model=None, time_s=1.0)
    ledger.close()


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all, but long enough to look like a file" * 20)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="folder exists"):
        Ledger(tmp_path / "missing" / "ledger.db")


FILLER = """
import resource, sys
from pathlib import Path
from interlock.core.errors import LedgerError
from interlock.registry.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
count = 0
try:
    while count < 1000:
        ledger.append_event("fill", {"text": "x" * 5000}, model=None, time_s=1.0)
        count += 1
except LedgerError as error:
    print(count, error.message)
"""


@pytest.mark.slow
def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path / "ledger.db")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    count, _, message = done.stdout.partition(" ")
    assert "nothing was changed" in message, (done.stdout, done.stderr)
    ledger = Ledger(tmp_path / "ledger.db")
    assert len(ledger.events()) == int(count) > 0
    ledger.close()


WRITER = """
import sys
from pathlib import Path
from interlock.registry.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
while True:
    print(ledger.append_event("tick", {}, model=None, time_s=1.0), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("acknowledged", [1, 40, 150])
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, acknowledged: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "ledger.db")], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    last = 0
    for _ in range(acknowledged):
        last = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split("\n")
    last = max([last, *(int(line) for line in rest[:-1] if line)])
    writer.wait()
    writer.stdout.close()
    ledger = Ledger(tmp_path / "ledger.db")
    seqs = [event.seq for event in ledger.events(limit=100_000)]
    ledger.close()
    assert seqs[:last] == list(range(1, last + 1)) and len(seqs) <= last + 1


def test_an_epoch_begins_with_its_release_and_a_late_decision_changes_nothing(ledger: Ledger) -> None:
    ledger.put_version(version(), 1.0)
    seen = ledger.request_release("iris", "1", "canary", 1.0, policy=Policy(budget=7))
    assert ledger.release(seen.id).policy == Policy(budget=7) and ledger.epochs(seen.id) == ()
    preparing = ledger.advance(seen.id, "preparing", time_s=2.0)
    first = RampEpoch(1, 0.05, (Cut(0.95, 0.01, 0.012),), 3.0)
    ramping = ledger.advance(seen.id, "ramping", time_s=3.0, was=preparing, epoch=first)
    assert (ramping.epoch, ramping.weight) == (1, 0.05) and ledger.epochs(seen.id) == (first,)
    ledger.advance(seen.id, "paused", "by hand", time_s=4.0)
    late = RampEpoch(2, 0.5, (), 5.0)
    with pytest.raises(LedgerError, match="is paused by now, not ramping"):
        ledger.advance(seen.id, "ramping", time_s=5.0, was=ramping, epoch=late)
    assert ledger.epochs(seen.id) == (first,) and ledger.release(seen.id).state is ReleaseState.PAUSED
    body = [event.body for event in ledger.events("iris") if event.kind == "release.ramping"]
    assert [(one["epoch"], one["weight"]) for one in body] == [(1, 0.05)]


def test_releases_of_the_first_schema_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path, migrations=schema.MIGRATIONS[:1]).close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO models VALUES ('iris', '{}', 7)")
        raw.execute("INSERT INTO versions VALUES ('iris', '1', '{}', 1.0)")
        raw.execute(
            "INSERT INTO releases VALUES (7, 'iris', '1', 'now', 'done', '', NULL, 0, 1.0, 2.0, 3.0),"
            " (8, 'iris', '1', 'now', 'preparing', '', '1', 0, 4.0, 5.0, NULL)"
        )
    raw.close()
    new = Ledger(path)
    live = new.live("iris")
    assert live is not None and (live.id, live.policy, live.weight) == (7, None, 0.0)
    assert [row.id for row in new.open_releases()] == [8]
    with pytest.raises(ReleaseRefused, match="release 8 of 'iris'"):
        new.request_release("iris", "1", "now", 6.0)
    assert new.request_release("iris", "1", "now", 6.0, supersede=True).id == 9
    new.close()


def test_what_an_older_interlock_recorded_has_no_provenance(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path, migrations=schema.MIGRATIONS[:2]).close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO models VALUES ('iris', '{}', NULL)")
        record = msgspec.json.encode(version()).decode()
        raw.execute("INSERT INTO versions VALUES ('iris', '1', ?, 1.0)", [record])
    raw.close()
    ledger = Ledger(path)
    try:
        assert ledger.version("iris", "1") == version()
        assert ledger.provenance("iris", "1") is None and ledger.main_metrics("iris") == {}
        quality = Quality("classification", 3, {"accuracy": 0.5, "brier": 0.2})
        ledger.put_version(version("2"), 2.0, provenance=Provenance(quality=quality))
        assert ledger.provenance("iris", "2") == Provenance(quality=quality)
        assert ledger.main_metrics("iris") == {"2": ("accuracy", 0.5)}
        assert ledger.provenance("iris", "3") is None
    finally:
        ledger.close()
