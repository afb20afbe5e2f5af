"""Simulates a whole release by evidence: seeded traffic on one side, the real plan on the other, a fake
clock between.

Each tick counts what came in under the epoch in force, asks `next_action`, and carries it out `delay` ticks
later, as a node would. Latencies are lognormal; both arms' failure rates may follow the clock (drift). What
the policy says of copies is done as `serving/pair.py` does it: while the candidate's weight is 0 it runs a
drawn share of the incumbent's requests, later the incumbent runs a share of the candidate's, and with a
shield the client of a failed candidate gets the incumbent's answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import msgspec
import numpy as np
import numpy.typing as npt

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.policy import Policy
from interlock.core.route import COPY_ARM
from interlock.core.state import BOUNDS_S, BUCKETS, ArmCounts, ArmKey, Histogram, PairCounts
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout import plan
from interlock.rollout.gate import Load
from interlock.rollout.judgement import Judgement
from interlock.rollout.plan import (
    CANARY,
    NEXT_STATE,
    Action,
    Fail,
    Hold,
    Pass,
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
UNIT_SHAPE = (0.5, 9.5)
"""Of the Beta distribution of the failure rates of users: .05 on average, and most of them never fail."""
MEDIAN_S = 0.02
_BOUNDS_S = np.array(BOUNDS_S)
Rate = Callable[[float], float]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def constant(value: float) -> Rate:
    return lambda now_s: value


@dataclass
class Ended:
    """How a simulated release ended: `state` is the last one, `harm` the failures that the candidate's
    clients saw beyond the incumbent's expected ones (with a shield it may be below 0), `requests` those of
    the candidate, `spent_s` since the first epoch; `failed` how many of its requests the candidate failed,
    `visible` how many of these failures its clients saw, `pairs` what both versions ran."""

    state: ReleaseState
    reason: str
    harm: float
    requests: int
    spent_s: float
    weights: list[float] = field(default_factory=list)
    failed: int = 0
    visible: int = 0
    pairs: PairCounts = PairCounts()


@contextmanager
def decisions_only() -> Iterator[None]:
    """Spare the plan what no decision needs: the forecasts, which are for people, a second judgement of the
    same snapshot, and more than three digits of the bound on the excess. Simulations then take a quarter of
    the time."""
    judged, last = plan.judged, list[tuple[Snapshot, Judgement | None]]()

    def once(snapshot: Snapshot) -> Judgement | None:
        if not last or last[0][0] is not snapshot:
            last[:] = [(snapshot, judged(snapshot))]
        return last[0][1]

    with (
        mock.patch("interlock.rollout.plan.judged", once),
        mock.patch("interlock.evidence.mixture.PRECISION", 1e-3),
        # No mock objects: they would keep the arguments of every call.
        mock.patch("interlock.rollout.gate.requests_needed", lambda *given: None),
        mock.patch("interlock.rollout.paired_gates.requests_needed", lambda *given: None),
    ):
        yield


@dataclass
class Canary:
    """One release. `incumbent` and `candidate` give a failure rate at a time; `slower` multiplies the
    candidate's latencies; `traffic` is requests a second.

    `given`: P(the candidate fails | the incumbent fails) on the same request. `disagreement`, `unsound`:
    shares of the candidate's answers that differ from the incumbent's, and that are not finite. `copied`:
    the share of the drawn copies that find a place. `units`: so many users, each of whom always meets the
    same arm and fails in proportion to a Beta variable (`UNIT_SHAPE`); 0 assigns each request on its own.
    """

    incumbent: Rate
    candidate: Rate
    traffic: Rate = constant(100.0)
    slower: float = 1.0
    policy: Policy = Policy()
    tick_s: float = 0.5
    delay: int = 1
    past: int = 5000
    sigma: float = 0.5
    strategy: str = CANARY
    given: float = 0.9
    disagreement: float = 0.0
    unsound: float = 0.0
    copied: float = 1.0
    units: int = 0

    def run(self, rng: np.random.Generator, most_s: float) -> Ended:
        """Until it is promoted, rolled back, passed or paused, or for `most_s`.

        Raises: ValueError when `given` is not possible with the two rates.
        """
        preparing = ReleaseState.PREPARING
        row = ReleaseRow(
            9, "iris", "2", self.strategy, preparing, "", "1", 0, START_S, START_S, None, self.policy
        )
        history = histogram(self.latencies_s(self.past, rng))
        counts = {
            ArmKey("iris", "1", LIVE.id, 0, 0): ArmCounts(dispatched=self.past, ok=self.past, total=history)
        }
        people = (rng.random(self.units), rng.beta(*UNIT_SHAPE, self.units))
        epochs: list[RampEpoch] = []
        in_force: list[tuple[int, float]] = [(0, 0.0)] * (self.delay + 1)
        ended = Ended(row.state, "", 0.0, 0, 0.0)
        now_s, began_s = START_S, START_S
        while now_s < began_s + most_s:
            now_s += self.tick_s
            number, weight = in_force.pop(0)
            rate = self.traffic(now_s)
            self.serve(row, number, weight, now_s, people, counts, ended, rng)
            action = next_action(self.snapshot(row, epochs, counts, now_s, rate))
            row, epochs = carry_out(row, epochs, action, now_s)
            if isinstance(action, Weight):
                ended.weights.append(action.weight)
                if len(epochs) == 1:
                    began_s = now_s
            in_force.append((row.epoch, row.weight))
            if row.state not in (preparing, ReleaseState.RAMPING):
                break
        ended.state, ended.reason, ended.spent_s = row.state, row.reason, now_s - began_s
        return ended

    def serve(
        self,
        row: ReleaseRow,
        number: int,
        weight: float,
        now_s: float,
        people: tuple[Floats, Floats],
        counts: dict[ArmKey, ArmCounts],
        ended: Ended,
        rng: np.random.Generator,
    ) -> None:
        """One tick of traffic under the epoch `number`, added to `counts` and `ended`."""
        n = int(rng.poisson(self.traffic(now_s) * self.tick_s))
        rates = [np.full(n, self.incumbent(now_s)), np.full(n, self.candidate(now_s))]
        if self.units:
            who = rng.integers(0, self.units, n)
            mine = people[0][who] < weight
            shape = sum(UNIT_SHAPE) / UNIT_SHAPE[0]
            rates = [np.minimum(each * people[1][who] * shape, 1.0) for each in rates]
            rates[1] = np.clip(rates[1], self.given * rates[0], 1.0 - (1.0 - self.given) * rates[0])
        else:
            mine = rng.random(n) < weight
        fails = both_fail(rates[0], rates[1], self.given, rng.random(n))
        latencies_s = self.latencies_s(n, rng), self.latencies_s(n, rng) * self.slower

        drawn, shielded = self.copies(number, weight, mine, rng)
        found, copies = PairCounts(), PairCounts()
        if drawn.any() or shielded:
            copied = drawn & (rng.random(n) < self.copied)
            found = self.pairs(fails, latencies_s, copied & mine, rng)
            helped, failed_twice = mine & fails[1] & ~fails[0], mine & fails[1] & fails[0]
            found = msgspec.structs.replace(
                found,
                dropped=number_of(drawn & ~copied & mine),
                shielded=number_of(helped) if shielded else 0,
                unshielded=number_of(failed_twice) if shielded else 0,
            )
            copies = self.pairs(fails, latencies_s, copied & ~mine, rng)
            copies = msgspec.structs.replace(copies, dropped=number_of(drawn & ~copied & ~mine))
            key = ArmKey("iris", "2", row.id, number, COPY_ARM)
            counts[key] = counts.get(key, ArmCounts()).merge(ArmCounts(pairs=copies))
        for arm in (0, 1):
            own = mine if arm else ~mine
            size, bad = number_of(own), number_of(own & fails[arm])
            key = ArmKey("iris", "12"[arm], row.id if number else LIVE.id, number, arm)
            got = ArmCounts(
                dispatched=size,
                ok=size - bad,
                failed=bad,
                rows=size,
                batches=size,
                total=histogram(latencies_s[arm][own]),
                pairs=found if arm else PairCounts(),
            )
            counts[key] = counts[key].merge(got) if key in counts else got
        seen = mine & fails[1] & fails[0] if shielded else mine & fails[1]
        ended.requests += number_of(mine)
        ended.failed += number_of(mine & fails[1])
        ended.visible += number_of(seen)
        ended.harm += float(number_of(seen) - rates[0][mine].sum())
        ended.pairs = ended.pairs.merge(found).merge(copies)

    def copies(self, number: int, weight: float, mine: Bools, rng: np.random.Generator) -> tuple[Bools, bool]:
        """Which requests are drawn for a copy, and whether the candidate's clients are shielded."""
        shadow, reverse = (self.policy.shadow or 0.0, self.policy.reverse or 0.0) if number else (0.0, 0.0)
        drawn = rng.random(len(mine)) < np.where(mine, reverse, shadow)
        return drawn, bool(number and weight > 0.0 and self.policy.shielded)

    def pairs(
        self,
        fails: tuple[Bools, Bools],
        latencies_s: tuple[Floats, Floats],
        copied: Bools,
        rng: np.random.Generator,
    ) -> PairCounts:
        """What comes of the requests that both versions run, each in a batch of its own."""
        theirs, ours = fails
        good = copied & ~ours & ~theirs
        answers = number_of(good)
        disagreed, unsound = rng.binomial(answers, (self.disagreement, self.unsound)).tolist()
        slow = number_of(good & (latencies_s[1] > latencies_s[0] * self.policy.slower))
        return PairCounts(
            good=answers,
            worse=number_of(copied & ours & ~theirs),
            better=number_of(copied & theirs & ~ours),
            bad=number_of(copied & ours & theirs),
            agreed=answers - disagreed,
            disagreed=disagreed,
            unsound_worse=unsound,
            slower=slow,
            faster=answers - slow,
        )

    def latencies_s(self, size: int, rng: np.random.Generator) -> Floats:
        found: Floats = MEDIAN_S * np.exp(self.sigma * rng.standard_normal(size))
        return found

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


def both_fail(incumbent: Floats, candidate: Floats, given: float, drawn: Floats) -> tuple[Bools, Bools]:
    """Who fails, by request: with its rates, and so that the candidate fails a share `given` of the requests
    that the incumbent fails. `drawn` is uniform in [0, 1).

    Raises: ValueError when that share is not possible with these rates.
    """
    joint = given * incumbent
    if ((joint > candidate + 1e-12) | (incumbent + candidate - joint > 1.0 + 1e-12)).any():
        raise ValueError(f"the candidate fails too seldom or too often to share {given:.0%} of the failures")
    alone = (drawn >= incumbent) & (drawn < incumbent + candidate - joint)
    return drawn < incumbent, alone | (drawn < joint)


def number_of(which: Bools) -> int:
    return int(np.count_nonzero(which))


def histogram(latencies_s: Floats) -> Histogram:
    counts = np.bincount(np.searchsorted(_BOUNDS_S, latencies_s), minlength=BUCKETS)
    return Histogram(tuple(counts.tolist()), float(latencies_s.sum()))


def carry_out(
    row: ReleaseRow, epochs: list[RampEpoch], action: Action, now_s: float
) -> tuple[ReleaseRow, list[RampEpoch]]:
    """The row and its epochs after an action, as the loop and the ledger would leave them."""
    if isinstance(action, Hold):
        return row, epochs
    reason = action.reason if isinstance(action, (Fail, Pass, Pause, Promote, RollBack)) else ""
    row = msgspec.structs.replace(row, state=NEXT_STATE[type(action)], reason=reason)
    weight = action.weight if isinstance(action, (Weight, Pause)) else None
    if weight is not None:
        cuts = action.cuts if isinstance(action, Weight) else ()
        epochs = [*epochs, RampEpoch(row.epoch + 1, weight, cuts, now_s)]
        row = msgspec.structs.replace(row, epoch=row.epoch + 1, weight=weight)
    return row, epochs
