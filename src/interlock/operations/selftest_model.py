"""Owns when the model that a self-test runs on may be there: one at a time in a home, and none afterwards.

The lock is held by the command, and the system gives it back whatever ends that; so whoever finds such a
model and can take the lock knows that nobody is there for it. Control looks now and then (`tidy`), and so
does the next self-test.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interlock.core.errors import ReleaseRefused
from interlock.core.fault import is_selftest
from interlock.core.settings import run_folder
from interlock.operations import release

if TYPE_CHECKING:
    from interlock.operations.context import Context

GONE_WITHIN_S = 5.0
"""How long the node may take to read that the model is unloaded; then its rows are taken out all the same."""
LOCK_WITHIN_S = 1.0
"""Control holds the lock for a moment when it tidies up after somebody else."""
POLL_S = 0.05


@contextmanager
def alone(ctx: Context) -> Iterator[None]:
    """Nobody else runs a self-test in this home; whatever an earlier one left is gone, and at the end what
    this one has made is.

    Raises: ReleaseRefused while another one runs; OSError; LedgerError.
    """
    until_s = time.monotonic() + LOCK_WITHIN_S
    while (fd := _lock(ctx)) is None:
        if time.monotonic() > until_s:
            raise ReleaseRefused(f"another self-test runs in {ctx.home}: wait for its end")
        time.sleep(POLL_S)
    try:
        _clear(ctx)
        yield
    finally:
        try:
            _clear(ctx)
        finally:
            os.close(fd)


def tidy(ctx: Context) -> None:
    """Take away, in two steps, what a self-test left whose command was killed: the first look unloads, and a
    later one takes the rows out. Raises: OSError; LedgerError."""
    if not _left(ctx):
        return
    fd = _lock(ctx)
    if fd is None:
        return
    try:
        for name in _left(ctx):
            if _in_use(ctx, name):
                release.unload(ctx, name)
            else:
                ctx.ledger.forget(name, ctx.now_s())
    finally:
        os.close(fd)


def _clear(ctx: Context) -> None:
    for name in _left(ctx):
        if _in_use(ctx, name):
            known = ctx.ledger.revision()
            release.unload(ctx, name)
            # Control numbers each Desired in the ledger: a new one is without the model.
            until_s = time.monotonic() + GONE_WITHIN_S
            while ctx.ledger.revision() == known and time.monotonic() < until_s:
                time.sleep(POLL_S)
        ctx.ledger.forget(name, ctx.now_s())


def _left(ctx: Context) -> list[str]:
    return [model.name for model in ctx.ledger.models() if is_selftest(model.name)]


def _in_use(ctx: Context, name: str) -> bool:
    open_ones = (row.model for row in ctx.ledger.open_releases())
    return ctx.ledger.live(name) is not None or name in open_ones


def _lock(ctx: Context) -> int | None:
    run_folder(ctx.home).mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(run_folder(ctx.home) / "selftest.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
