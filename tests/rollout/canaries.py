"""Simulates a whole canary release: seeded traffic on one side, the real plan on the other, a fake clock
between.

Each tick counts what came in under the epoch in force, asks `next_action`, and carries it out `delay` ticks
later, as a node would. Latencies are lognormal; both arms' failure rates may follow the clock (drift).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.policy import Policy
from interlock.core.state import BOUNDS_S, BUCKETS, ArmCounts, ArmKey, Histogram
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.gate import Load
from interlock.rollout.plan import (
    CANARY,
    NEXT_STATE,
    Action,
    Fail,
    Hold,
    Pause,
    Promote,
    RollBack,
    Weight,
    next_action,
)
from interlock.rollout.snapshot import RampView, Snapshot, WorkerView
from interlock.rollout.tally import next_cuts, tally

DIGEST = "sha256:" + "b" * 64
LIVE = ReleaseRow(4, "iris", "1", "now", ReleaseState.DONE, "", None, 0, 0.0, 0.0, 0.0)
START_S = 1000.0
Rate = Callable[[float], float]


def constant(value: float) -> Rate:
    return lambda now_s: value


@dataclass
class Ended:
    """How a simulated release ended: `state` is the last one, `harm` the candidate's failures beyond the
    incumbent's expected ones, `requests` those of the candidate, `spent_s` since the first weight."""

    state: ReleaseState
    reason: str
    harm: float
    requests: int
    spent_s: float
    weights: list[float] = field(default_factory=list)


def lognormal_buckets(median_s: float, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """The chance of each latency bucket, from a large sample."""
    found = np.searchsorted(BOUNDS_S, median_s * np.exp(sigma * rng.standard_normal(200_000)))
    return np.bincount(found, minlength=BUCKETS) / 200_000


@dataclass
class Canary:
    """One release. `incumbent` and `candidate` give a failure rate at a time; `slower` multiplies the
    candidate's latencies; `traffic` is requests a second."""

    incumbent: Rate
    candidate: Rate
    traffic: Rate = constant(100.0)
    slower: float = 1.0
    policy: Policy = Policy()
    tick_s: float = 0.5
    delay: int = 1
    past: int = 5000
    sigma: float = 0.5

    def run(self, rng: np.random.Generator, most_s: float) -> Ended:
        """Until it is promoted, rolled back or paused, or for `most_s`."""
        shapes = [
            lognormal_buckets(0.02, self.sigma, rng),
            lognormal_buckets(0.02 * self.slower, self.sigma, rng),
        ]
        row = ReleaseRow(
            9, "iris", "2", CANARY, ReleaseState.PREPARING, "", "1", 0, START_S, START_S, None, self.policy
        )
        history = Histogram(tuple(int(n) for n in rng.multinomial(self.past, shapes[0])), 1.0)
        counts = {
            ArmKey("iris", "1", LIVE.id, 0, 0): ArmCounts(dispatched=self.past, ok=self.past, total=history)
        }
        epochs: list[RampEpoch] = []
        in_force: list[tuple[int, float]] = [(0, 0.0)] * (self.delay + 1)
        weights: list[float] = []
        now_s, harm, asked, began_s = START_S, 0.0, 0, START_S
        while now_s < began_s + most_s:
            now_s += self.tick_s
            number, weight = in_force.pop(0)
            rate = self.traffic(now_s)
            n = rng.poisson(rate * self.tick_s)
            mine = rng.binomial(n, weight)
            rates = self.incumbent(now_s), self.candidate(now_s)
            for arm, size in ((0, n - mine), (1, mine)):
                bad = rng.binomial(size, rates[arm])
                key = ArmKey("iris", "12"[arm], row.id if number else LIVE.id, number, arm)
                got = ArmCounts(
                    dispatched=size,
                    ok=size - bad,
                    failed=bad,
                    rows=size,
                    batches=size,
                    total=Histogram(tuple(int(k) for k in rng.multinomial(size, shapes[arm])), 0.0),
                )
                counts[key] = counts[key].merge(got) if key in counts else got
                harm += arm * (bad - size * rates[0])
            asked += mine
            action = next_action(self.snapshot(row, epochs, counts, now_s, rate))
            row, epochs = carry_out(row, epochs, action, now_s)
            if isinstance(action, Weight):
                weights.append(action.weight)
                if len(epochs) == 1:
                    began_s = now_s
            in_force.append((row.epoch, row.weight))
            if row.state not in (ReleaseState.PREPARING, ReleaseState.RAMPING):
                break
        return Ended(row.state, row.reason, harm, asked, now_s - began_s, weights)

    def snapshot(
        self,
        row: ReleaseRow,
        epochs: list[RampEpoch],
        counts: dict[ArmKey, ArmCounts],
        now_s: float,
        rate_per_s: float,
    ) -> Snapshot:
        worker = WorkerView("worker-0", True, 5, 5, VersionStatus("iris", "2", DIGEST, VersionState.READY))
        view = RampView(
            now_s,
            tally(row, LIVE.number, epochs, counts),
            rate_per_s,
            next_cuts(self.policy, LIVE, row, counts),
            load=Load(rate_per_s, 1),
        )
        return Snapshot(row, LIVE, DIGEST, 5, 10.0, (worker,), ramp=view)


def carry_out(
    row: ReleaseRow, epochs: list[RampEpoch], action: Action, now_s: float
) -> tuple[ReleaseRow, list[RampEpoch]]:
    """The row and its epochs after an action, as the loop and the ledger would leave them."""
    if isinstance(action, Hold):
        return row, epochs
    reason = action.reason if isinstance(action, (Fail, Pause, Promote, RollBack)) else ""
    row = msgspec.structs.replace(row, state=NEXT_STATE[type(action)], reason=reason)
    weight = action.weight if isinstance(action, (Weight, Pause)) else None
    if weight is not None:
        cuts = action.cuts if isinstance(action, Weight) else ()
        epochs = [*epochs, RampEpoch(row.epoch + 1, weight, cuts, now_s)]
        row = msgspec.structs.replace(row, epoch=row.epoch + 1, weight=weight)
    return row, epochs
