"""Makes the tables of MLflow's stores whole, whoever else does so or is killed meanwhile."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from interlock.registry.database import make_private

_LOCK = 0x1A7E210C
"""Any number that other users of the database do not take."""


def make_store(path: Path) -> None:
    """A new store, whole at once, where none is yet. MLflow's fifty migrations are no transaction: cut off
    by Ctrl-C or a full disk they leave a file that no later start can mend."""
    if path.exists() and not any(_unfinished(path)):
        return
    with _alone_in(path.parent):
        # Whoever comes here is alone: these are of processes that were killed.
        for left in _unfinished(path):
            left.unlink(missing_ok=True)
        if path.exists():  # another process was faster
            return
        from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

        hidden = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        make_private(hidden)
        try:
            engine = create_sqlalchemy_engine(f"sqlite:///{hidden}")  # type: ignore[no-untyped-call]
            try:
                _initialize_tables(engine)  # type: ignore[no-untyped-call]
            finally:
                engine.dispose()
            os.link(hidden, path)
        finally:
            for left in _unfinished(path):
                left.unlink(missing_ok=True)


@contextmanager
def alone_in_database(uri: str) -> Iterator[None]:
    """A database of the user's, which has answered once: MLflow itself would try ten times with a wrong
    password. PostgreSQL lets in one process at a time, as two that make the tables at once fail."""
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
        yield


def _unfinished(path: Path) -> Iterator[Path]:
    """Stores that are being made beside `path`, or whose making was cut off, with SQLite's own files."""
    return path.parent.glob(f".{path.name}-*")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder itself, which leaves no file and ends with its owner."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
