"""What people see of a release that is under way: how it stands, and what the last look decided."""

import msgspec

from interlock.registry.rows import ReleaseRow
from interlock.rollout.judgement import Judgement
from interlock.rollout.plan import AB, Action, Hold, allowed, judged
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.tally import EpochTally


class RolloutView(msgspec.Struct, frozen=True):
    """One look at an open release. `incumbent` is the live version's number; `rate_per_s` the requests of the
    model, None while they are not measured; `judgement` what the gates say, None where nothing is compared;
    `may_send` how many more requests the harm budget allows the candidate, None for no limit. `decided` names
    the action of this look, `why` gives its reason, or what is waited for."""

    release: ReleaseRow
    incumbent: str | None
    now_s: float
    rate_per_s: float | None
    epochs: tuple[EpochTally, ...]
    judgement: Judgement | None
    may_send: float | None
    decided: str
    why: str


def unseen(release: ReleaseRow, incumbent: str | None, now_s: float) -> RolloutView:
    """An open release at which no look has been taken yet: it was asked for just now, or control has just
    started."""
    return RolloutView(
        release, incumbent, now_s, None, (), None, None, "hold", "it has not been looked at yet"
    )


def view(snapshot: Snapshot, action: Action, now_s: float) -> RolloutView:
    """How a look at a release reads for people. `now_s` is Unix time."""
    judgement, ramp = judged(snapshot), snapshot.ramp
    compared = judgement is not None and ramp is not None and bool(ramp.epochs)
    return RolloutView(
        release=snapshot.release,
        incumbent=None if snapshot.live is None else snapshot.live.number,
        now_s=now_s,
        rate_per_s=None if ramp is None else ramp.rate_per_s,
        epochs=() if ramp is None else ramp.epochs,
        judgement=judgement if compared else None,
        may_send=(
            allowed(snapshot, judgement).requests
            if compared and judgement is not None and snapshot.release.strategy != AB
            else None
        ),
        decided=action.__struct_config__.tag if isinstance(action.__struct_config__.tag, str) else "",
        why=action.why if isinstance(action, Hold) else getattr(action, "reason", ""),
    )
