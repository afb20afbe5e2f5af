"""Decides what counts for and against an arm: turns a node's counters into the counts that gates read.

- requests: those settled well or badly, refused, cut off by the caller, or lost. In flight is not yet known.
- bad: failed, timed out, lost in a crash (dispatched, never settled), and refused: the route had chosen the
  arm, and its queue could not take the request.
- `invalid` is the client's fault and counts for nobody. `cancelled` is a request without a verdict; how
  long the caller had waited is in the latencies.
"""

from collections.abc import Mapping, Sequence
from math import log

import msgspec

from interlock.core.policy import Policy, Share
from interlock.core.route import COPY_ARM
from interlock.core.state import BOUNDS_S, ArmCounts, ArmKey, Histogram, PairCounts
from interlock.evidence.exceedance import Cut, above, cuts
from interlock.registry.rows import RampEpoch, ReleaseRow

INCUMBENT, CANDIDATE = 0, 1
"""Indices of the arms in the route of a ramp; another index is no evidence (requests that name their
version)."""
STEP = BOUNDS_S[1] / BOUNDS_S[0]
"""Between two bounds of the latency histogram: 1.19. What the policy calls slower is rounded to the nearest
step."""
OBJECTIVE = 0.0
"""The level under which the cut at the user's latency objective stands."""


class ArmTally(msgspec.Struct, frozen=True):
    """What one arm did in one epoch. `slow` counts answers above each cut of the epoch, `timed` all that were
    timed; `sent` all that the route gave to the arm."""

    requests: int = 0
    bad: int = 0
    sent: int = 0
    timed: int = 0
    slow: tuple[int, ...] = ()
    rows: int = 0
    batches: int = 0
    compute_s: float = 0.0


class EpochTally(msgspec.Struct, frozen=True):
    """Both arms while the weight and the cuts were constant. Of what both versions ran, `pairs` are requests
    that the candidate answered, `copies` those that the incumbent did."""

    number: int
    weight: float
    cuts: tuple[Cut, ...]
    started_s: float
    incumbent: ArmTally
    candidate: ArmTally
    pairs: PairCounts = PairCounts()
    copies: PairCounts = PairCounts()

    @property
    def both(self) -> PairCounts:
        return self.pairs.merge(self.copies)


def arm_tally(counts: ArmCounts, cuts_s: Sequence[float]) -> ArmTally:
    """One arm's counts; `cuts_s` are its own cuts, bounds of the latency histogram."""
    bad = counts.failed + counts.timed_out + counts.lost + counts.refused
    return ArmTally(
        requests=counts.ok + counts.cancelled + bad,
        bad=bad,
        sent=counts.dispatched + counts.refused,
        timed=counts.total.count,
        slow=tuple(above(counts.total, cut_s) for cut_s in cuts_s),
        rows=counts.rows,
        batches=counts.batches,
        compute_s=counts.compute_ns / 1e9,
    )


def tally(
    row: ReleaseRow, live: str, epochs: Sequence[RampEpoch], counts: Mapping[ArmKey, ArmCounts]
) -> tuple[EpochTally, ...]:
    """The epochs of a release with what both arms did; `live` is the incumbent's number."""
    return _of_arm(row, live, row.number, CANDIDATE, [(epoch, epoch.weight) for epoch in epochs], counts)


def tally_all(
    row: ReleaseRow,
    arms: Sequence[Share],
    live: str,
    epochs: Sequence[RampEpoch],
    counts: Mapping[ArmKey, ArmCounts],
) -> tuple[tuple[EpochTally, ...], ...]:
    """The epochs of an A/B test, for each candidate with the incumbent alone: its weight is that among the
    two."""
    left = 1.0 - sum(arm.weight for arm in arms)
    return tuple(
        _of_arm(
            row,
            live,
            arm.version,
            index,
            [(epoch, arm.weight / (arm.weight + left) if epoch.weight else 0.0) for epoch in epochs],
            counts,
        )
        for index, arm in enumerate(arms, start=CANDIDATE)
    )


def sent_by_arm(
    row: ReleaseRow,
    versions: Sequence[str],
    epochs: Sequence[RampEpoch],
    counts: Mapping[ArmKey, ArmCounts],
) -> dict[int, tuple[int, ...]]:
    """How many requests the route gave to each arm, by epoch, without those that were the client's mistake;
    `versions` are those of the arms by index."""

    def sent(epoch: int, version: str, index: int) -> int:
        one = counts.get(ArmKey(row.model, version, row.id, epoch, index), _NOTHING)
        return one.dispatched + one.refused - one.invalid

    return {
        epoch.number: tuple(sent(epoch.number, version, index) for index, version in enumerate(versions))
        for epoch in epochs
    }


def _of_arm(
    row: ReleaseRow,
    live: str,
    number: str,
    index: int,
    epochs: Sequence[tuple[RampEpoch, float]],
    counts: Mapping[ArmKey, ArmCounts],
) -> tuple[EpochTally, ...]:
    def of(epoch: RampEpoch, version: str, index: int) -> ArmCounts:
        return counts.get(ArmKey(row.model, version, row.id, epoch.number, index), _NOTHING)

    return tuple(
        EpochTally(
            epoch.number,
            weight,
            epoch.cuts,
            epoch.started_s,
            arm_tally(of(epoch, live, INCUMBENT), [cut.incumbent_s for cut in epoch.cuts]),
            arm_tally(mine, [cut.candidate_s for cut in epoch.cuts]),
            mine.pairs,
            of(epoch, number, COPY_ARM).pairs,
        )
        for epoch, weight in epochs
        for mine in (of(epoch, number, index),)
    )


def next_cuts(
    policy: Policy, live: ReleaseRow, row: ReleaseRow, counts: Mapping[ArmKey, ArmCounts]
) -> tuple[Cut, ...]:
    """The cuts for an epoch that begins now: from the incumbent's latencies since it is live, so that they
    are known before what they judge."""
    past = Histogram()
    for key, arm in counts.items():
        mine = key.model == row.model and key.version == live.number and key.release in (live.id, row.id)
        if mine and key.arm != COPY_ARM and (key.release, key.arm) != (row.id, CANDIDATE):
            past = past.merge(arm.total)
    found = cuts(past, STEP ** round(log(policy.slower, STEP)) - 1.0)
    if policy.objective_s is None:
        return found
    bound_s = next((bound for bound in BOUNDS_S if bound >= policy.objective_s), BOUNDS_S[-1])
    return (*found, Cut(OBJECTIVE, bound_s, bound_s))


def sent_in_all(model: str, counts: Mapping[ArmKey, ArmCounts]) -> int:
    """Requests of a model so far, under whatever release: their growth is the traffic. Copies are none."""
    mine = (arm for key, arm in counts.items() if key.model == model and key.arm != COPY_ARM)
    return sum(arm.dispatched + arm.refused for arm in mine)


_NOTHING = ArmCounts()
