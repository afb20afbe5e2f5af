"""Asks for a release and for the way back; rollout/ carries it out.

A release is a row in the ledger: it is asked for with or without a running node, which picks it up when it
next looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.appfile import app_file, release_policy
from interlock.core.errors import ConfigError, LedgerError, ModelNotFound, ReleaseRefused
from interlock.core.model import check_fault
from interlock.core.policy import Policy, Share
from interlock.operations.settings_file import read_app_file
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.mirroring import settled
from interlock.rollout.plan import AB, BLUE_GREEN, CANARY, NOW, ROLLBACK, SHADOW, policy_of

if TYPE_CHECKING:
    from interlock.operations.context import Context

KEEP_S = 300.0
"""How long a blue-green release keeps the old version hot, unless it is told."""

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
    check_fault(version)
    begun = [row for row in _open(ctx, name) if row.state is not ReleaseState.REQUESTED]
    return ctx.ledger.request_release(name, version.number, NOW, ctx.now_s(), supersede=not begun)


def release_canary(
    ctx: Context, name: str, selector: str | None, rules: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Ask that a version is tried on copies of a model's requests, then on a share of them, and promoted or
    rolled back by evidence.

    Where nothing is live there is nothing to compare with: all requests at once. `rules` are fields of the
    Policy; they win over the app file's for this model, and these over the defaults.
    Raises: as `release_now`; ReleaseRefused also for the version that is live; ConfigError for a policy that
    cannot be, or that the two versions do not allow.
    """
    return _compared(ctx, name, selector, CANARY, rules or {})


def release_shadow(
    ctx: Context, name: str, selector: str | None, rules: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Ask that a version runs copies of a model's requests, and say whether it could take its place: it ends
    as passed or failed, and what is live stays so.

    Raises: as `release_canary`; ReleaseRefused also where nothing is live.
    """
    return _compared(ctx, name, selector, SHADOW, rules or {})


def release_ab(
    ctx: Context, name: str, selector: str | None, rules: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Ask that one or several versions answer fixed shares of a model's requests beside the live one, until
    feedback proves one of them better, which is then promoted, or something worse about one.

    The candidates are `rules["arms"]` (`Share`; versions by number or "@alias"); without them the one that
    `selector` names gets half. Units stick to a version by their header unless a rule says otherwise.
    Raises: as `release_canary`; ReleaseRefused also where nothing is live; ConfigError without a metric.
    """
    from interlock.operations.resolve import resolve

    given = dict(rules or {})
    arms = given.pop("arms", None)
    if arms and selector is not None:
        raise ConfigError(
            f"version {selector!r} and the candidates of an A/B test: want one of them; the version alone "
            "gets half of the requests"
        )
    shares = [msgspec.convert(arm, Share) for arm in arms or ()] or [Share(selector or "", 0.5)]
    versions = [resolve(ctx, name, share.version or None) for share in shares]
    for version in versions:
        check_fault(version)
    live = ctx.ledger.live(name)
    if live is None:
        raise ReleaseRefused(
            f"no version of {name!r} is live, so there is nothing to compare with; release one first: "
            f"interlock release {name} {versions[0].number} --now"
        )
    if live.number in [version.number for version in versions]:
        raise ReleaseRefused(
            f"version {live.number} of {name!r} is live already, and takes part as what the others are "
            "compared with: leave it out"
        )
    named = [Share(version.number, share.weight) for version, share in zip(versions, shares, strict=True)]
    file = read_app_file(ctx.home)
    if "unit" not in {**file.releases.get(name, {}), **given}:
        given["unit"] = "header"
    given["arms"] = [msgspec.to_builtins(share) for share in named]
    policy = settled(release_policy(file, name, given, str(app_file(ctx.home))), None, versions[0])
    return _ask(ctx, name, named[0].version, AB, policy)


def _ask(ctx: Context, name: str, number: str, strategy: str, policy: Policy) -> ReleaseRow:
    begun = [row for row in _open(ctx, name) if row.state is not ReleaseState.REQUESTED]
    return ctx.ledger.request_release(name, number, strategy, ctx.now_s(), supersede=not begun, policy=policy)


def _compared(
    ctx: Context, name: str, selector: str | None, strategy: str, rules: Mapping[str, Any]
) -> ReleaseRow:
    from interlock.operations.resolve import resolve

    policy = release_policy(read_app_file(ctx.home), name, rules, str(app_file(ctx.home)))
    version = resolve(ctx, name, selector)
    check_fault(version)
    live = ctx.ledger.live(name)
    if live is None and strategy == SHADOW:
        raise ReleaseRefused(
            f"no version of {name!r} is live, so there are no requests to copy; release one first: "
            f"interlock release {name} {version.number} --now"
        )
    if live is not None and live.number == version.number:
        raise ReleaseRefused(
            f"version {version.number} of {name!r} is live already: a {strategy} needs another version to "
            f"compare it with; load it anew with: interlock release {name} {version.number} --now"
        )
    incumbent = None if live is None else ctx.ledger.version(name, live.number)
    if policy.arms:
        raise ConfigError(f"arms are the candidates of an A/B test (--ab), and this is a {strategy}")
    policy = settled(policy, incumbent, version, answers=strategy != SHADOW)
    return _ask(ctx, name, version.number, strategy, policy)


def release_blue_green(ctx: Context, name: str, selector: str | None, keep_s: float = KEEP_S) -> ReleaseRow:
    """As `release_now`, but the old version stays in memory for `keep_s` after the switch: going back is at
    once.

    Raises: as `release_now`; ConfigError for a time that cannot be.
    """
    from interlock.operations.resolve import resolve

    policy = Policy(keep_s=keep_s)
    version = resolve(ctx, name, selector)
    check_fault(version)
    return _ask(ctx, name, version.number, BLUE_GREEN, policy)


def pause(ctx: Context, name: str) -> ReleaseRow:
    """Leave a canary's weight as it is until it is resumed; what is proved against it still rolls it back.

    Raises: ModelNotFound; ReleaseRefused where no canary of the model is ramping.
    """
    row = _under_way(ctx, name, "paused", ReleaseState.RAMPING)
    return _step(ctx, row, ReleaseState.PAUSED, "paused by hand")


def resume(ctx: Context, name: str, budget: float | None = None) -> ReleaseRow:
    """Let a paused canary go on, its time limit beginning anew; `budget` replaces that of its policy.

    Raises: ModelNotFound; ReleaseRefused where none is paused; ConfigError.
    """
    row = _under_way(ctx, name, "resumed", ReleaseState.PAUSED)
    policy = policy_of(row)
    if budget is not None:
        policy = msgspec.structs.replace(policy, budget=budget)
    return ctx.ledger.advance(
        row.id, ReleaseState.RAMPING, "resumed by hand", time_s=ctx.now_s(), was=row, resumed=policy
    )


def promote(ctx: Context, name: str) -> ReleaseRow:
    """Give a canary all requests, whatever the evidence.

    Raises: ModelNotFound; ReleaseRefused where none is ramping or paused, for a shadow, and for an A/B test
    of several candidates, which does not say which.
    """
    row = _under_way(ctx, name, "promoted", ReleaseState.RAMPING, ReleaseState.PAUSED)
    arms = policy_of(row).arms
    if len(arms) > 1:
        raise ReleaseRefused(
            f"release {row.id} of {name!r} compares versions {', '.join(arm.version for arm in arms)} with "
            f"the live one: abort it, and release the one that you want with: interlock release {name} "
            f"{arms[0].version} --now"
        )
    if row.strategy == SHADOW:
        raise ReleaseRefused(
            f"release {row.id} of {name!r} (version {row.number}) is a shadow, which never goes live: abort "
            f"it and release the version with: interlock release {name} {row.number}"
        )
    return _step(ctx, row, ReleaseState.SWITCHING, "promoted by hand")


def abort(ctx: Context, name: str) -> ReleaseRow:
    """End the release that is under way; the version that was live answers all requests.

    Raises: ModelNotFound; ReleaseRefused where nothing is under way.
    """
    row = _under_way(ctx, name, "aborted")
    if row.state in (ReleaseState.RAMPING, ReleaseState.PAUSED, ReleaseState.KEEPING):
        return _step(ctx, row, ReleaseState.ROLLING_BACK, "aborted by hand")
    return _stop(ctx, row, "aborted by hand")


def _under_way(ctx: Context, name: str, what: str, *states: ReleaseState) -> ReleaseRow:
    known(ctx, name)
    rows = _open(ctx, name)
    if not rows:
        raise ReleaseRefused(
            f"no release of {name!r} is under way: nothing can be {what}; see: interlock events {name}"
        )
    if states and rows[0].state not in states:
        raise ReleaseRefused(
            f"release {rows[0].id} of {name!r} (version {rows[0].number}, {rows[0].strategy}) is "
            f"{rows[0].state} and cannot be {what}; that takes one that is {' or '.join(states)}"
        )
    return rows[0]


def _step(ctx: Context, row: ReleaseRow, state: ReleaseState, reason: str) -> ReleaseRow:
    # Its weight may change at any moment; that does not matter to a person. That it ended does.
    return ctx.ledger.advance(row.id, state, reason, time_s=ctx.now_s())


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
