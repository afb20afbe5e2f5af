"""Owns the feedback of a home folder: what workers wrote down, taken in once, in a database of its own.

It is not in the ledger, which is small and worth a copy; this one grows with the traffic. What was taken from
a file and how far it was read are written in one transaction: whoever is killed when, each line counts once.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import sqlalchemy as sa

from interlock.core.errors import LedgerError, MalformedMessage
from interlock.core.feedback import Feedback, Note, inbox_folder
from interlock.core.request import RequestId
from interlock.registry.database import Database

KEEP_S = 30 * 86400.0
"""How long feedback is kept."""
_CHUNK_BYTES = 1024 * 1024
_SCHEMA = 1
_TABLES = (
    # `counted`: 0 for all but the first of a unit, which stands for one observation.
    """CREATE TABLE feedback (
        request_id TEXT NOT NULL,
        name TEXT NOT NULL,
        release INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        arm INTEGER NOT NULL,
        sent_ms INTEGER NOT NULL,
        came_ms INTEGER NOT NULL,
        value REAL NOT NULL,
        unit INTEGER,
        counted INTEGER NOT NULL,
        PRIMARY KEY (request_id, name)) WITHOUT ROWID""",
    "CREATE INDEX feedback_in_order ON feedback (release, name, sent_ms, request_id)",
    """CREATE UNIQUE INDEX feedback_first_of_unit ON feedback (release, name, unit)
        WHERE unit IS NOT NULL AND counted = 1""",
    "CREATE INDEX feedback_by_age ON feedback (came_ms)",
    "CREATE TABLE files (name TEXT PRIMARY KEY, read_bytes INTEGER NOT NULL)",
)
_ADD = sa.text(
    """INSERT OR IGNORE INTO feedback
       VALUES (:id, :name, :release, :epoch, :arm, :sent_ms, :came_ms, :value, :unit, :counted)"""
)
_decode = msgspec.json.Decoder(Note).decode


class Scored(msgspec.Struct, frozen=True):
    """One request's value, as an arm is scored by it."""

    id: str
    epoch: int
    arm: int
    sent_ms: int
    value: float


def feedback_file(home: Path) -> Path:
    """The database."""
    return home / "feedback.db"


class FeedbackStore:
    """The feedback of one home folder. From any thread.

    Raises, each method: LedgerError.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._taking = threading.Lock()
        self._database = Database(feedback_file(home), busy_timeout_s=5.0)
        with self._database.write() as connection:
            stood = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
            if stood > _SCHEMA:
                raise LedgerError(
                    f"{feedback_file(home)} has schema {stood}, this Interlock knows up to {_SCHEMA}: "
                    "upgrade Interlock, or move the file away"
                )
            if stood == 0:
                for statement in _TABLES:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(f"PRAGMA user_version = {_SCHEMA}")

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def take_in(self) -> int:
        """Read all that workers have written down by now; returns how many lines."""
        with self._taking:
            return self._take_all(_files(inbox_folder(self._home)))

    def _take_all(self, names: list[str]) -> int:
        # A worker begins a file only when it is done with the one before: what is listed behind another one
        # says that this will not grow any more.
        newest = {name.rsplit(".", 2)[0]: name for name in sorted(names)}
        taken = 0
        for name in names:
            taken += self._take(name)
            if name != newest[name.rsplit(".", 2)[0]]:
                with self._database.write() as connection:
                    connection.execute(sa.text("DELETE FROM files WHERE name = :n"), {"n": name})
                (inbox_folder(self._home) / name).unlink(missing_ok=True)
        return taken

    def _take(self, name: str) -> int:
        path = inbox_folder(self._home) / name
        taken = 0
        with self._database.read() as connection:
            known = connection.execute(sa.text("SELECT read_bytes FROM files WHERE name = :n"), {"n": name})
            at = int(known.scalar() or 0)
        if path.stat().st_size <= at:
            return 0
        with path.open("rb") as file:
            while True:
                file.seek(at)
                data = file.read(_CHUNK_BYTES)
                whole = data.rfind(b"\n") + 1
                if not whole:
                    return taken  # a line that is being written, or that was cut by a full disk
                at += whole
                rows = [row for line in data[:whole].splitlines() if (row := _row(line)) is not None]
                with self._database.write() as connection:
                    if rows:
                        # The second time for those that are not the first of their unit.
                        connection.execute(_ADD, [{**row, "counted": 1} for row in rows])
                        connection.execute(_ADD, [{**row, "counted": 0} for row in rows])
                    connection.execute(
                        sa.text("INSERT OR REPLACE INTO files VALUES (:n, :at)"), {"n": name, "at": at}
                    )
                taken += len(rows)

    def scored(
        self, release: int, name: str, after: tuple[int, str], until_ms: int, age_ms: int
    ) -> Iterator[Scored]:
        """In the order in which the requests came: those of a release after one (`sent_ms`, id), up to
        `until_ms`, whose feedback came within `age_ms`; one for each unit."""
        query = sa.text(
            """SELECT request_id, epoch, arm, sent_ms, value FROM feedback
               WHERE release = :release AND name = :name AND counted = 1
               AND (sent_ms, request_id) > (:after_ms, :after_id) AND sent_ms <= :until_ms
               AND came_ms - sent_ms <= :age_ms
               ORDER BY sent_ms, request_id"""
        )
        values = {
            "release": release,
            "name": name,
            "after_ms": after[0],
            "after_id": after[1],
            "until_ms": until_ms,
            "age_ms": age_ms,
        }
        with self._database.read() as connection:
            for row in connection.execute(query, values):
                yield Scored(*row)

    def summary(self, release: int) -> dict[str, dict[int, tuple[int, float]]]:
        """All feedback of a release, whatever its age: by name and arm, how many values and their mean."""
        query = sa.text(
            "SELECT name, arm, count(*), avg(value) FROM feedback WHERE release = :r GROUP BY name, arm"
        )
        found: dict[str, dict[int, tuple[int, float]]] = defaultdict(dict)
        with self._database.read() as connection:
            for name, arm, count, mean in connection.execute(query, {"r": release}):
                found[name][arm] = int(count), float(mean)
        return dict(found)

    def prune(self, before_ms: int) -> int:
        """Forget what came before; returns how many values."""
        with self._database.write() as connection:
            gone = connection.execute(sa.text("DELETE FROM feedback WHERE came_ms < :b"), {"b": before_ms})
            return int(gone.rowcount)


def _files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.count(".") >= 2)
    except FileNotFoundError:
        return []


def _row(line: bytes) -> dict[str, object] | None:
    """One line as a row; None for one that was cut."""
    try:
        note = _decode(line)
        of: RequestId = Feedback(note.id, note.name, note.value).of
    except (msgspec.MsgspecError, UnicodeDecodeError, MalformedMessage):
        return None
    if max(of.release, of.time_ms, of.unit or 0) >= 2**63:
        return None  # no id of ours: more than the database holds
    return {
        "id": note.id,
        "name": note.name,
        "release": of.release,
        "epoch": of.epoch,
        "arm": of.arm,
        "sent_ms": of.time_ms,
        "came_ms": note.came_ms,
        "value": note.value,
        "unit": of.unit,
    }
