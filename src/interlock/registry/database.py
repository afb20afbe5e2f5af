"""Owns the ledger's database file: connections, what a transaction is, and errors with a remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from interlock.core.errors import LedgerError


class Database:
    """Transactions on one SQLite file, from any thread. `busy_timeout_s` bounds the wait for a writer."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self.path = path
        make_private(path)
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": busy_timeout_s})
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(interlock_write=True)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        # The write lock is taken at BEGIN: a transaction that read first and asked for it later would be
        # refused at once (SQLITE_BUSY_SNAPSHOT), however long the busy time-out.
        with self._translated(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise LedgerError(f"the ledger {self.path}: {error.orig}; {_remedy(str(error.orig))}") from error
        except exc.SQLAlchemyError as error:
            raise LedgerError(f"the ledger {self.path}: {error}") from error


def make_private(path: Path) -> None:
    """Make a new database's file, empty, for this user alone; SQLite gives its companions the same rights.

    One that exists is not touched: opening and closing it here would drop the locks that others in this
    process hold on it.
    """
    with suppress(OSError):  # FileExistsError; the others SQLite runs into as well, and they are told there
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _prepare(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # SQLAlchemy, not the driver, says when a transaction begins
    cursor = dbapi.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("interlock_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


_REMEDIES = (
    ("locked", "another process holds it: try again, or find who keeps it open"),
    ("full", "free some space on that disk and try again; nothing was changed"),
    ("disk I/O", "check the disk and its free space; nothing was changed"),
    ("readonly", "make the file and its folder writable for this user"),
    ("unable to open", "check that the folder exists and belongs to this user"),
    ("not a database", "the file is damaged or something else: move it away or restore a copy"),
    ("malformed", "the file is damaged: restore a copy"),
)


def _remedy(words: str) -> str:
    for sign, remedy in _REMEDIES:
        if sign in words:
            return remedy
    return "nothing was changed"
