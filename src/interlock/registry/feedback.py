"""Owns the feedback of a home folder: what workers wrote down, taken in once, in a database of its own.

It is not in the ledger, which is small and worth a copy; this one grows with the traffic. What was taken from
a file and how far it was read are written in one transaction: whoever is killed when, each line counts once.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import sqlalchemy as sa

from interlock.core.errors import InvalidRequest, LedgerError
from interlock.core.feedback import Feedback, Note, check_feedback, inbox_folder
from interlock.registry.database import Database

KEEP_S = 30 * 86400.0
"""How long feedback is kept."""
MOST_BYTES = 8 * 1024**3
"""Of the database. Beyond it, workers keep what comes until their own limit, and then refuse."""
WRITTEN_WITHIN_S = 1.0
"""A worker notes when feedback came, and then writes it down: within this, whatever keeps it from a core."""
NEW_MEANWHILE = 100
"""So many releases may begin while one reads."""
MOST_NUMBER = 2**62
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
    "CREATE INDEX feedback_in_order ON feedback (release, name, sent_ms, request_id) WHERE counted = 1",
    """CREATE UNIQUE INDEX feedback_first_of_unit ON feedback (release, name, unit)
        WHERE unit IS NOT NULL AND counted = 1""",
    "CREATE INDEX feedback_by_age ON feedback (came_ms)",
    "CREATE TABLE files (name TEXT PRIMARY KEY, read_bytes INTEGER NOT NULL)",
)
_ADD = """INSERT OR IGNORE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?,
    ? IS NULL OR NOT EXISTS (
        SELECT 1 FROM feedback WHERE release = ? AND name = ? AND unit = ? AND counted = 1))"""
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
    """The feedback of one home folder. From any thread; only one takes in. `newest_release` tells the highest
    number of a release that there is: what names one far beyond is not kept.

    Raises, each method: LedgerError.
    """

    def __init__(self, home: Path, newest_release: Callable[[], int] = lambda: MOST_NUMBER) -> None:
        self.taken_ms = 0
        """All that came until then (Unix time) is in the database."""
        self._home = home
        self._newest_release = newest_release
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
        """Read all that workers have written down by now; returns how many values were new to it.

        Raises: LedgerError also where the database is as large as it may be.
        """
        began_ms = int((time.time() - WRITTEN_WITHIN_S) * 1000)
        if feedback_file(self._home).stat().st_size > MOST_BYTES:
            raise LedgerError(f"{feedback_file(self._home)} has {MOST_BYTES:,} bytes: no more is taken in")
        folder = inbox_folder(self._home)
        names = _files(folder)
        # A worker begins a file only when it is done with the one before: what is listed behind another one
        # says that this will not grow any more.
        newest = {name.rsplit(".", 2)[0]: name for name in names}
        last_release, taken = self._newest_release() + NEW_MEANWHILE, 0
        for name in names:
            taken += self._take(folder / name, last_release)
            if name != newest[name.rsplit(".", 2)[0]]:
                with self._database.write() as connection:
                    connection.execute(sa.text("DELETE FROM files WHERE name = :n"), {"n": name})
                (folder / name).unlink(missing_ok=True)
        self.taken_ms = max(self.taken_ms, began_ms)
        return taken

    def _take(self, path: Path, last_release: int) -> int:
        taken = 0
        with self._database.read() as connection:
            known = connection.execute(
                sa.text("SELECT read_bytes FROM files WHERE name = :n"), {"n": path.name}
            )
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
                rows = [row for line in data[:whole].splitlines() if (row := _row(line, last_release))]
                with self._database.write() as connection:
                    if rows:
                        connection.exec_driver_sql(_ADD, rows)
                    connection.execute(
                        sa.text("INSERT OR REPLACE INTO files VALUES (:n, :at)"), {"n": path.name, "at": at}
                    )
                taken += len(rows)

    def scored(
        self, release: int, name: str, after: tuple[int, str], until_ms: int, age_ms: int, most: int = 20_000
    ) -> list[Scored]:
        """In the order in which the requests came, up to `most` of them: those of a release after one
        (`sent_ms`, id), up to `until_ms`, whose feedback came within `age_ms`; one for each unit."""
        query = sa.text(
            """SELECT request_id, epoch, arm, sent_ms, value FROM feedback
               WHERE release = :release AND name = :name AND counted = 1
               AND (sent_ms, request_id) > (:after_ms, :after_id) AND sent_ms <= :until_ms
               AND came_ms - sent_ms <= :age_ms
               ORDER BY sent_ms, request_id LIMIT :most"""
        )
        values = {
            "release": release,
            "name": name,
            "after_ms": after[0],
            "after_id": after[1],
            "until_ms": until_ms,
            "age_ms": age_ms,
            "most": most,
        }
        with self._database.read() as connection:
            return [Scored(*row) for row in connection.execute(query, values)]

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
        """Forget what came before; returns how many values. In steps, between which others may write."""
        gone = 0
        some = sa.text(
            """DELETE FROM feedback WHERE (request_id, name) IN
               (SELECT request_id, name FROM feedback WHERE came_ms < :b LIMIT 5000)"""
        )
        while True:
            with self._database.write() as connection:
                count = int(connection.execute(some, {"b": before_ms}).rowcount)
            if not count:
                return gone
            gone += count


def _files(folder: Path) -> list[str]:
    """Those of workers, oldest part first."""
    try:
        found = os.scandir(folder)
    except FileNotFoundError:
        return []
    with found:
        return sorted(entry.name for entry in found if entry.is_file() and entry.name.count(".") >= 2)


def _row(line: bytes, last_release: int) -> tuple[object, ...] | None:
    """One line as a row; None for one that was cut, or that is not of a release of this home."""
    try:
        note = _decode(line)
        item = Feedback(note.id, note.name, note.value)
        check_feedback(item)
    except (msgspec.MsgspecError, UnicodeError, InvalidRequest):
        return None
    of = item.of
    if of.release > last_release or not 0 <= note.came_ms < MOST_NUMBER:
        return None
    where = of.release, note.name, of.unit
    return (
        note.id,
        note.name,
        of.release,
        of.epoch,
        of.arm,
        of.time_ms,
        note.came_ms,
        note.value,
        of.unit,
    ) + (
        of.unit,
        *where,
    )
