"""Decides the next step of a release from one snapshot of everything that matters.

Strategy `now` (and `rollback`, which is the same towards what was live before): requested -> preparing
(loaded beside the old version) -> switching (the route points to it) -> done. Whatever goes wrong before
that leaves the old version live, and the reason names each process that could not. `blue-green` stays in
keeping for a while before it is done: the old version is hot.

Strategy `canary`: preparing -> ramping, where both versions answer and each new weight is an epoch of its
own -> switching, when the evidence lets it through; or -> rolling_back, when the evidence or a crash is
against it, which ends in failed once no worker sends it a request any more. It is paused by a person, or
where only a person can tell. Its first epoch is a shadow where the versions allow it: the candidate runs
copies, and gets its first requests when it is known to fail hardly more often.

Strategy `shadow`: preparing -> ramping at weight 0 -> passed, when the copies prove it, or rolling_back.

Strategy `ab`: preparing -> ramping at fixed weights -> switching, when feedback proves one candidate better
than the live version; or -> rolling_back, when one is proved worse in anything. Nothing is copied.
"""

from typing import Any

import msgspec

from interlock.core.policy import Policy, Undecided
from interlock.evidence.exceedance import Cut
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.ab import judge_all, proofs, served
from interlock.rollout.forecast import forecast, in_words
from interlock.rollout.gate import judge
from interlock.rollout.judgement import Judgement, Kind
from interlock.rollout.paired_gates import copies_excess_most, needed_to_clear
from interlock.rollout.ramp import CLEAR_MARGINS, Allowance, allowance
from interlock.rollout.readiness import broken, candidates, not_ready, not_switched, what_stays
from interlock.rollout.snapshot import Snapshot

DECISION = 5
"""Number of this decision code, logged with each decision: a replay compares like with like."""

NOW = "now"
ROLLBACK = "rollback"
BLUE_GREEN = "blue-green"
CANARY = "canary"
SHADOW = "shadow"
AB = "ab"
"""Strategies. Without a live version there is nothing to compare with: a canary then is as `now`."""
COMPARED = (CANARY, SHADOW, AB)
"""Those that are decided by evidence."""

DWELL_S = 2.0
"""The least time between two epochs: the counts of the one before are in, nearly all."""
LEAST_SERVED = 100
"""Requests that a candidate has answered before it is promoted, whatever its copies have proved: what is
wrong only in serving shows within a few of them."""
LEAST_DRAWN = 200
"""Requests drawn for a shadow before it is given up because its copies find no place."""


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Wait; `why` says for what."""

    why: str


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Load the version beside the live one."""


class Switch(msgspec.Struct, frozen=True, tag="switch"):
    """Every worker has it: point the route at it."""


class Weight(msgspec.Struct, frozen=True, tag="weight"):
    """Begin an epoch in which the candidate gets this share, judged by these cuts."""

    weight: float
    cuts: tuple[Cut, ...]
    reason: str


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Wait for a person. `weight` 0 takes all requests from the candidate; None leaves its share as it is."""

    reason: str
    weight: float | None = None


class Promote(msgspec.Struct, frozen=True, tag="promote"):
    """The evidence lets it through: point the route at it. `number`: which one, of several candidates."""

    reason: str
    number: str | None = None


class Pass(msgspec.Struct, frozen=True, tag="pass"):
    """What a shadow was to prove is proved; the version that was live stays."""

    reason: str


class RollBack(msgspec.Struct, frozen=True, tag="roll_back"):
    """All requests to the incumbent, now."""

    reason: str


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Every worker routes to it: the old version stays hot for a while."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Every worker routes to it: it is live, and the old one may go."""


class Fail(msgspec.Struct, frozen=True, tag="fail"):
    """Give up; the old version stays."""

    reason: str


Action = Hold | Prepare | Weight | Pause | Promote | Pass | RollBack | Switch | Keep | Finish | Fail

NEXT_STATE: dict[type[Action], ReleaseState] = {
    Prepare: ReleaseState.PREPARING,
    Weight: ReleaseState.RAMPING,
    Pause: ReleaseState.PAUSED,
    Promote: ReleaseState.SWITCHING,
    Pass: ReleaseState.PASSED,
    RollBack: ReleaseState.ROLLING_BACK,
    Switch: ReleaseState.SWITCHING,
    Keep: ReleaseState.KEEPING,
    Finish: ReleaseState.DONE,
    Fail: ReleaseState.FAILED,
}


def next_action(snapshot: Snapshot) -> Action:
    """What to do now about one open release."""
    match snapshot.release.state:
        case ReleaseState.REQUESTED:
            return Prepare()
        case ReleaseState.PREPARING:
            return _prepare(snapshot)
        case ReleaseState.RAMPING:
            return _ramp(snapshot)
        case ReleaseState.PAUSED:
            return _pause(snapshot)
        case ReleaseState.SWITCHING:
            return _switch(snapshot)
        case ReleaseState.KEEPING:
            return _keep(snapshot)
        case ReleaseState.ROLLING_BACK:
            return _roll_back(snapshot)
        case finished:
            return Hold(f"the release is {finished}")


def judged(snapshot: Snapshot) -> Judgement | None:
    """What the gates say in a snapshot; None where there is nothing to judge."""
    if snapshot.ramp is None:
        return None
    row, ramp = snapshot.release, snapshot.ramp
    if row.strategy == AB:
        each = (ramp.epochs, *ramp.others)
        if len(each) != len(policy_of(row).arms):  # nothing is live any more, or a record is lost
            return None
        return judge_all(each, policy_of(row), ramp.load, row.resumed_epoch, ramp.scored, ramp.memory)
    return judge(
        ramp.epochs,
        policy_of(row),
        ramp.load,
        row.resumed_epoch,
        row.strategy != SHADOW,
        ramp.scored,
        memory=ramp.memory[0] if ramp.memory else None,
    )


def policy_of(row: ReleaseRow) -> Policy:
    """The policy in force."""
    return row.policy if row.policy is not None else Policy()


def allowed(snapshot: Snapshot, judgement: Judgement) -> Allowance:
    """What the candidate may be sent now."""
    rate_per_s = snapshot.ramp.rate_per_s if snapshot.ramp is not None else None
    return allowance(
        policy_of(snapshot.release),
        judgement.candidate_requests,
        judgement.excess_most,
        rate_per_s or 0.0,
        snapshot.release.weight,
    )


def _prepare(snapshot: Snapshot) -> Action:
    if fault := broken(snapshot):
        return Fail(f"{fault}; {what_stays(snapshot)}")
    waiting = [
        f"{w.process} {why}"
        for one in candidates(snapshot)
        for w in one.workers
        if (why := not_ready(one, w)) is not None
    ]
    if not waiting:
        return _begin(snapshot)
    if snapshot.waited_s > snapshot.limits.load_s:
        limit = f"not ready everywhere within {snapshot.limits.load_s:g} s"
        return Fail(f"{limit}: {', '.join(waiting)}; {what_stays(snapshot)}")
    return Hold(", ".join(waiting))


def _switch(snapshot: Snapshot) -> Action:
    if fault := broken(snapshot):
        return Fail(f"{fault}; {what_stays(snapshot)}")
    waiting = [
        f"{w.process} {why}" for w in snapshot.workers if (why := not_switched(snapshot, w)) is not None
    ]
    if not waiting:
        keep_s = policy_of(snapshot.release).keep_s
        return Keep() if keep_s > 0 and snapshot.live is not None else Finish()
    if snapshot.waited_s > snapshot.limits.switch_s:
        limit = f"not routed everywhere within {snapshot.limits.switch_s:g} s"
        return Fail(f"{limit}: {', '.join(waiting)}; {what_stays(snapshot)}")
    return Hold(", ".join(waiting))


def _begin(snapshot: Snapshot) -> Action:
    if snapshot.release.strategy in (SHADOW, AB) and snapshot.live is None:
        return Fail("nothing is live, so there is nothing to compare with; release it with --now")
    if snapshot.release.strategy not in COMPARED or snapshot.live is None:
        return Switch()
    ramp = snapshot.ramp
    if snapshot.release.strategy == AB:
        return _give_shares(snapshot, "the shares of the test")
    if policy_of(snapshot.release).shadow:
        return Weight(0.0, ramp.next_cuts if ramp is not None else (), "a shadow: it runs copies")
    if ramp is None or (ramp.rate_per_s is None and snapshot.waited_s <= snapshot.limits.load_s):
        return Hold("it is ready; the traffic is being measured")
    judgement = judged(snapshot)
    assert judgement is not None
    found = allowed(snapshot, judgement)
    if found.weight == 0.0:
        return Fail(f"{_too_little(snapshot, found)}; {what_stays(snapshot)}")
    return Weight(found.weight, ramp.next_cuts, "the first step")


def _ramp(snapshot: Snapshot) -> Action:
    ramp, row, policy = snapshot.ramp, snapshot.release, policy_of(snapshot.release)
    if against := _against(snapshot):
        return RollBack(against)
    judgement = judged(snapshot)
    if ramp is None or judgement is None:
        return Hold("it has not been counted yet")
    if judgement.hold and not (row.strategy == SHADOW and row.resumed_s is not None):
        return Pause(judgement.hold, weight=0.0)
    if row.strategy == AB:
        return _test(snapshot, judgement)
    if judgement.proved:
        proved = "; ".join(gate.message for gate in judgement.gates if gate.kind is Kind.PROMOTION)
        if row.strategy == SHADOW:
            return Pass(proved)
        if judgement.candidate_requests >= LEAST_SERVED:
            return Promote(proved)
    if (over := _time_over(snapshot, judgement)) is not None:
        return over
    if row.weight == 0.0 and (waiting := _in_shadow(snapshot, judgement)):
        return Hold(waiting)
    found = allowed(snapshot, judgement)
    if found.weight == 0.0:
        return Pause(_too_little(snapshot, found), weight=0.0)
    if found.weight < row.weight:
        if policy.is_sticky:  # a smaller share would send units back and forth
            return Pause(_too_little(snapshot, found), weight=0.0)
        return Weight(found.weight, ramp.next_cuts, f"the harm budget allows only {found.weight:g}")
    late = [w.process for w in snapshot.workers if not w.connected or w.seen_revision < snapshot.revision]
    if late:
        return Hold(f"{', '.join(late)} has not read the weight of {row.weight:g} yet")
    if not ramp.epochs or ramp.now_s - ramp.epochs[-1].started_s >= DWELL_S:
        if found.weight > row.weight:
            return Weight(found.weight, ramp.next_cuts, f"the harm budget allows {found.weight:g}")
        if ramp.epochs and len(ramp.next_cuts) > len(ramp.epochs[-1].cuts):
            return Weight(row.weight, ramp.next_cuts, "enough latencies for more cuts")
    return Hold(forecast(judgement, ramp.rate_per_s))


def _time_over(snapshot: Snapshot, judgement: Judgement) -> Action | None:
    ramp, row, policy = snapshot.ramp, snapshot.release, policy_of(snapshot.release)
    assert ramp is not None
    since_s = ramp.epochs[0].started_s if ramp.epochs else ramp.now_s
    if row.resumed_s is not None:
        since_s = row.resumed_s
    if ramp.now_s - since_s <= policy.time_limit_s:
        return None
    reason = f"{_UNDECIDED}{policy.time_limit_s:g} s: {forecast(judgement, ramp.rate_per_s)}"
    return RollBack(reason) if policy.undecided is Undecided.ROLL_BACK else Pause(reason)


_UNDECIDED = "undecided after "


def is_time_over(action: Action) -> bool:
    """Whether a rollback is for the time limit alone, with nothing proved."""
    return isinstance(action, RollBack) and action.reason.startswith(_UNDECIDED)


def _test(snapshot: Snapshot, judgement: Judgement) -> Action:
    """The next step of an A/B test against which nothing is proved."""
    row, policy, ramp = snapshot.release, policy_of(snapshot.release), snapshot.ramp
    assert ramp is not None
    if row.weight == 0.0:
        return _give_shares(snapshot, "resumed")
    if judgement.winner and served((ramp.epochs, *ramp.others), policy, judgement.winner) >= LEAST_SERVED:
        return Promote(proofs(judgement, policy), judgement.winner)
    if (over := _time_over(snapshot, judgement)) is not None:
        return over
    return Hold(forecast(judgement, ramp.rate_per_s))


def _give_shares(snapshot: Snapshot, reason: str) -> Weight:
    total = sum(arm.weight for arm in policy_of(snapshot.release).arms)
    return Weight(total, snapshot.ramp.next_cuts if snapshot.ramp is not None else (), reason)


def _in_shadow(snapshot: Snapshot, judgement: Judgement) -> str:
    """Why a candidate that runs copies does not answer requests yet; "" when it may."""
    ramp, policy = snapshot.ramp, policy_of(snapshot.release)
    assert ramp is not None
    pairs = judgement.pairs
    ran = pairs.good + pairs.worse + pairs.better + pairs.bad
    if snapshot.release.strategy == SHADOW:
        return f"a shadow, {ran:,} copies: {forecast(judgement, ramp.rate_per_s)}"
    if not policy.shadow:
        return ""
    clear = CLEAR_MARGINS * policy.margin
    # Where copies find no place there is nothing to wait for: the harm budget bounds what comes.
    if copies_excess_most(ramp.epochs) <= clear or (
        pairs.dropped > ran and pairs.dropped + ran >= LEAST_DRAWN
    ):
        return "" if ramp.rate_per_s is not None else "the traffic is being measured"
    needed = needed_to_clear(ramp.epochs, policy, clear)
    return f"a shadow, {ran:,} copies: {in_words(needed, ramp.rate_per_s, 'until it answers its first')}"


def _pause(snapshot: Snapshot) -> Action:
    against = _against(snapshot)
    return RollBack(against) if against else Hold(f"paused: {snapshot.release.reason}")


def _against(snapshot: Snapshot) -> str:
    """Why the candidate must go at once; "" while nothing is proved against it."""
    if why := broken(snapshot):
        return why
    for one in candidates(snapshot):
        if one.ramp is not None and one.ramp.crashes:
            return f"version {one.release.number} ended its process {one.ramp.crashes} times"
    judgement = judged(snapshot)
    return "" if judgement is None else judgement.rollback


def _keep(snapshot: Snapshot) -> Action:
    if why := broken(snapshot):
        return RollBack(why)
    keep_s = policy_of(snapshot.release).keep_s
    kept_s = snapshot.waited_s
    if snapshot.ramp is not None:  # across restarts of control
        kept_s = snapshot.ramp.now_s - snapshot.release.changed_s
    if kept_s >= keep_s:
        return Finish()
    return Hold(f"the old version is kept for {keep_s - kept_s:.0f} s more")


def _roll_back(snapshot: Snapshot) -> Action:
    # A worker swaps its route in the same step in which it reads of it: the incumbent is in memory.
    late = [w.process for w in snapshot.workers if not w.connected or w.seen_revision < snapshot.revision]
    reason, stays = snapshot.release.reason or "rolled back", what_stays(snapshot)
    if not late:
        return Fail(f"{reason}; {stays}")
    if snapshot.waited_s > snapshot.limits.switch_s:
        return Fail(f"{reason}; not acknowledged by {', '.join(late)}; {stays}")
    return Hold(f"{', '.join(late)} has not taken its requests back yet")


def _too_little(snapshot: Snapshot, found: Allowance) -> str:
    policy = policy_of(snapshot.release)
    return (
        f"undecided, and the harm budget of {policy.budget:g} failed requests beyond the margin of "
        f"{policy.margin:.2%} allows {found.requests or 0:.0f} more requests; resume it with a larger "
        "--budget, promote it or abort it"
    )


def as_record(snapshot: Snapshot, action: Action) -> dict[str, Any]:
    """A decision as the event log keeps it: JSON values from which `replay` derives it again."""
    record: dict[str, Any] = msgspec.to_builtins(
        {"decision": DECISION, "snapshot": snapshot, "action": action}
    )
    return record
