"""Writes releases by evidence into a ledger, decided by the real plan from made-up counts: what a node leaves
behind, without one."""

import time

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.policy import Policy
from interlock.core.state import BOUNDS_S, PairCounts
from interlock.evidence.exceedance import Cut
from interlock.operations.context import Context
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.gate import Load
from interlock.rollout.plan import (
    NEXT_STATE,
    SHADOW,
    Action,
    Hold,
    Pause,
    Weight,
    as_record,
    next_action,
)
from interlock.rollout.snapshot import RampView, Snapshot, WorkerView
from interlock.rollout.tally import ArmTally, EpochTally
from tests.operations.homes import release_and_carry_out

POLICY = Policy(margin=0.05, slower=4.0, shadow=1.0, reverse=1.0, shielded=True, most_disagreement=1.0)
CUTS = (Cut(0.95, BOUNDS_S[40], BOUNDS_S[48]),)
RATE_PER_S = 100.0
GOOD = PairCounts(good=2000, agreed=1990, disagreed=10, faster=400)
BAD = PairCounts(good=60, worse=40, agreed=60)


def tried(number: int, weight: float, pairs: PairCounts, asked: int = 0, bad: int = 0) -> EpochTally:
    """An epoch in which the candidate got `asked` requests, and the incumbent its share beside them."""
    theirs = round(asked * (1.0 - weight) / weight) if asked else 2000
    return EpochTally(
        number,
        weight,
        CUTS,
        time.time() - 60.0,
        ArmTally(theirs, 0, theirs, theirs, (theirs // 20,)),
        ArmTally(asked, bad, asked, asked, (0,)),
        pairs if weight > 0.0 else PairCounts(),
        PairCounts() if weight > 0.0 else pairs,
    )


def look(
    ctx: Context, row: ReleaseRow, *epochs: EpochTally, pending: bool = False
) -> tuple[Snapshot, Action]:
    """What one look at a release sees and decides. `pending`: no worker has read of it yet."""
    version = ctx.ledger.version(row.model, row.number)
    assert version is not None
    ready = VersionStatus(row.model, row.number, version.digest, VersionState.READY)
    worker = WorkerView("worker-0", True, 1 if pending else 5, 5, ready)
    load = Load(RATE_PER_S, 1, {1: 0.001, 16: 0.004})  # as of a version that was measured at registration
    ramp = RampView(time.time(), epochs, RATE_PER_S, CUTS, load=load)
    live = ctx.ledger.live(row.model)
    snapshot = Snapshot(row, live, version.digest, 5, 10.0, (worker,), ramp=ramp)
    return snapshot, next_action(snapshot)


def decide(ctx: Context, row: ReleaseRow, *epochs: EpochTally) -> ReleaseRow:
    """One step of a release, written down as the rollout loop does it."""
    snapshot, action = look(ctx, row, *epochs)
    assert not isinstance(action, Hold), action
    now_s = time.time()
    begun = None
    if isinstance(action, Weight) or (isinstance(action, Pause) and action.weight not in (None, row.weight)):
        assert action.weight is not None
        begun = RampEpoch(row.epoch + 1, action.weight, getattr(action, "cuts", ()), now_s)
    return ctx.ledger.advance(
        row.id,
        NEXT_STATE[type(action)],
        getattr(action, "reason", ""),
        as_record(snapshot, action),
        time_s=now_s,
        was=row,
        epoch=begun,
    )


def begun(ctx: Context, strategy: str, model: str = "iris", policy: Policy = POLICY) -> ReleaseRow:
    """Version 2 in its shadow epoch beside version 1, which is live."""
    if ctx.ledger.live(model) is None:
        release_and_carry_out(ctx, model, "1")
    row = ctx.ledger.request_release(model, "2", strategy, time.time(), policy=policy)
    row = decide(ctx, decide(ctx, row))
    assert (row.state, row.weight, row.epoch) == (ReleaseState.RAMPING, 0.0, 1)
    return row


def a_shadow(ctx: Context, pairs: PairCounts, model: str = "iris") -> ReleaseRow:
    """A shadow that has ended, by what its pairs say."""
    epoch = tried(1, 0.0, pairs)
    row = decide(ctx, begun(ctx, SHADOW, model), epoch)
    return row if row.state.finished else decide(ctx, row, epoch)
