"""Decides what to do about the alias of the registry that a model follows: release a version, or not.

A move of the alias is dealt with once. What became of the version afterwards changes nothing: one that was
rolled back is not released again until the alias moves again.
"""

import msgspec

from interlock.registry.rows import Followed, ReleaseRow
from interlock.rollout.plan import ROLLBACK


class Stay(msgspec.Struct, frozen=True):
    """Nothing has moved."""


class Wait(msgspec.Struct, frozen=True):
    """It has moved, and cannot be dealt with yet."""

    reason: str


class Note(msgspec.Struct, frozen=True):
    """It has moved, and there is nothing to release: remember that."""

    number: str | None
    reason: str


class Ask(msgspec.Struct, frozen=True):
    """It has moved: ask for a release of this version."""

    number: str


def next_step(
    alias: str, named: str | None, last: Followed | None, live: str | None, newest: ReleaseRow | None
) -> Stay | Wait | Note | Ask:
    """What to do when the registry says that `alias` names version `named` (None: it does not exist).

    `last`: the last move that was dealt with. `live`: the version that is live; `newest`: the model's newest
    release; None where there is none.
    >>> next_step("champion", "3", Followed("champion", "2", 1), "2", None)
    Ask(number='3')
    >>> next_step("champion", "3", Followed("champion", "3", 1), "2", None)
    Stay()
    """
    if last is not None and last.alias != alias:
        last = None  # another alias was followed then
    if named is None:
        if last is None or last.number is None:
            return Stay()
        return Note(None, f"the alias {alias} was deleted; version {last.number} stays as it is")
    if last is not None and last.number == named:
        return Stay()
    if newest is not None and newest.number == named and newest.strategy != ROLLBACK:
        # By hand, or by us, killed before it was written down.
        if newest.id > (0 if last is None else last.release):
            return Note(named, f"release {newest.id} of it was asked for already, and is {newest.state}")
    if newest is not None and not newest.state.finished:
        return Wait(f"release {newest.id} (version {newest.number}) is under way")
    if named == live:
        return Note(named, "it is live already")
    return Ask(named)
