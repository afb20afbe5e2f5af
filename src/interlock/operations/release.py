"""Asks for a release and for the way back; rollout/ carries it out.

A release is a row in the ledger: it is asked for with or without a running node, which picks it up when it
next looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interlock.core.errors import LedgerError, ModelNotFound, ReleaseRefused
from interlock.registry.rows import ReleaseRow, ReleaseState

if TYPE_CHECKING:
    from interlock.operations.context import Context

NOW = "now"
ROLLBACK = "rollback"
"""Strategies of this module's releases: all at once; and the same, back to what was live before."""

_HISTORY = 1000
"""How many releases of a model a rollback looks back over."""


def release_now(ctx: Context, name: str, selector: str | None) -> ReleaseRow:
    """Ask that a version answers all of a model's requests: loaded beside the old one, checked, then swapped.

    `selector` is a number, "@alias", or None for the newest. A release that nobody has begun to carry out is
    superseded; releasing what is live already loads it anew.
    Raises: ModelNotFound, VersionNotFound, ArtifactError, RegistryError; ReleaseRefused while another release
    of the model is under way.
    """
    from interlock.operations.resolve import resolve  # a rollback needs none of what this brings in

    version = resolve(ctx, name, selector)
    begun = [row for row in _open(ctx, name) if row.state is not ReleaseState.REQUESTED]
    return ctx.ledger.request_release(name, version.number, NOW, ctx.now_s(), supersede=not begun)


def rollback(ctx: Context, name: str) -> ReleaseRow:
    """Ask for the version that was live before; while a release is under way, stop it and keep the live one.

    Going back twice goes back two versions, never forward again to what was rolled back.
    Raises: ModelNotFound; ReleaseRefused if there is nothing to go back to.
    """
    known(ctx, name)
    live = ctx.ledger.live(name)
    under_way = _open(ctx, name)
    if under_way and live is None:
        stopped = _stop(ctx, under_way[0], "stopped by a rollback before any version was live")
        return stopped if stopped.state is not ReleaseState.DONE else rollback(ctx, name)
    if live is None:
        raise ReleaseRefused(f"model {name!r} has no live version to roll back from; release one first")
    if under_way:
        number = live.number
    else:
        before = version_before(ctx.ledger.releases(name, _HISTORY))
        if before is None:
            raise ReleaseRefused(
                f"version {live.number} of {name!r} is the first that was live: there is nothing before it; "
                f"release another version by its number instead"
            )
        number = before
    return ctx.ledger.request_release(name, number, ROLLBACK, ctx.now_s(), supersede=True)


def version_before(newest_first: Sequence[ReleaseRow]) -> str | None:
    """The version to go back to, from a model's releases; None if nothing was live before.

    Each release that was carried out lays its version on a pile, and a rollback takes off what lay above it.
    """
    pile: list[str] = []
    for row in reversed(newest_first):
        if row.state is not ReleaseState.DONE:
            continue
        if row.strategy == ROLLBACK and row.number in pile:
            while pile[-1] != row.number:
                pile.pop()
        elif not pile or pile[-1] != row.number:
            pile.append(row.number)
    return pile[-2] if len(pile) > 1 else None


def unload(ctx: Context, name: str) -> None:
    """Take a model off the node: an open release is stopped, and nothing is live.

    Raises: ModelNotFound.
    """
    known(ctx, name)
    for row in _open(ctx, name):
        _stop(ctx, row, "the model was unloaded")
    ctx.ledger.set_live(name, None, ctx.now_s())


def known(ctx: Context, name: str) -> None:
    """Nothing, if the ledger knows the model.

    Raises: ModelNotFound with those that it knows.
    """
    if ctx.ledger.model(name) is None:
        names = [model.name for model in ctx.ledger.models()]
        listed = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
        raise ModelNotFound(f"no model {name!r} here; known: {listed or 'none'}")


def _stop(ctx: Context, row: ReleaseRow, reason: str) -> ReleaseRow:
    """End an open release; one that has ended since it was read is returned as it ended."""
    try:
        return ctx.ledger.advance(row.id, ReleaseState.SUPERSEDED, reason, time_s=ctx.now_s())
    except LedgerError:
        ended = ctx.ledger.release(row.id)
        if not ended.state.finished:
            raise
        return ended


def _open(ctx: Context, name: str) -> list[ReleaseRow]:
    return [row for row in ctx.ledger.open_releases() if row.model == name]
