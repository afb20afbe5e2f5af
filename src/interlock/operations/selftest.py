"""The use case `selftest`: copies of a live version, some made worse on purpose, released on a running node.

All that a release goes through is real: ledger, control, workers, data port. Only the model is another one
(`core/fault.py`): its live version is a copy of the live one, so that no client of the model meets a
candidate, and none of its releases or counts are touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.appfile import AppFile, model_settings, release_policy
from interlock.core.errors import (
    ConfigError,
    InterlockError,
    NodeUnreachable,
    ReleaseFailed,
    ReleaseRefused,
)
from interlock.core.fault import Fault, is_selftest, selftest_model
from interlock.core.model import Placement, Version
from interlock.core.settings import run_folder
from interlock.operations import reference, release
from interlock.operations.certificate import events_of
from interlock.operations.discovery import find_node
from interlock.operations.selftest_model import alone
from interlock.operations.selftest_traffic import Traffic, aimed, encoded, made_up
from interlock.operations.settings_file import read_app_file
from interlock.operations.wait import poll_release
from interlock.registry.rows import ReleaseState
from interlock.rollout.gate import judge
from interlock.rollout.judgement import Kind
from interlock.rollout.mirroring import settled
from interlock.rollout.plan import Promote, RollBack, policy_of
from interlock.rollout.replay import decisions
from interlock.rollout.selftest import (
    Blocks,
    Outcome,
    Report,
    Trial,
    alarms,
    bound,
    pairs_run,
    report,
    why_not,
)
from interlock.rollout.tally import tally
from interlock.serving.counters import read_all

if TYPE_CHECKING:
    from interlock.core.model import Tensors
    from interlock.operations.context import Context
    from interlock.registry.rows import ReleaseRow
    from interlock.rollout.tally import EpochTally

FAULTS = (Fault("fail", 0.05), Fault("slow", 3.0), Fault("flip", 0.4), Fault("nan", 0.05))
"""What is tried unless somebody says otherwise. Labels may differ in 20 % (`rollout/mirroring.py`)."""
TRIALS = 3
RATE_PER_S = 100.0
MOST_RATE_PER_S = 1000.0
LIMIT_S = 900.0
LOOK_S = 0.2
ENDS_S = 60.0
"""How long a release that was aborted, or one for all requests at once, may take to end."""
_WARM = 200
"""Requests before the first trial: the latencies of the live copy are known then."""

Say = Callable[[str], object]


class Plan(msgspec.Struct, frozen=True):
    """What a self-test does: A/A releases, faults, requests a second, seconds in all, and the file with rows
    to ask about (None: made-up ones).

    Raises: ConfigError.
    """

    trials: int = TRIALS
    faults: tuple[Fault, ...] = FAULTS
    rate_per_s: float = RATE_PER_S
    limit_s: float = LIMIT_S
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.trials < 0 or not (self.trials or self.faults):
            raise ConfigError(f"{self.trials} trials and {len(self.faults)} faults: want something to try")
        if not 1.0 <= self.rate_per_s <= MOST_RATE_PER_S:
            raise ConfigError(f"{self.rate_per_s:g} requests a second: want 1 to {MOST_RATE_PER_S:g}")


def selftest(
    ctx: Context,
    name: str,
    plan: Plan | None = None,
    rules: Mapping[str, Any] | None = None,
    say: Say = lambda words: None,
) -> Report:
    """Try the gates of a model on its live version, on the node that runs in this home, and take away what
    was needed for it. `rules` as of a release; `say` is told each step, in words.

    Raises: ModelNotFound; NodeUnreachable without a node; ReleaseRefused where nothing is live, where it must
    not be asked made-up requests or answers none, or while another self-test runs; ReleaseFailed;
    ConfigError; CheckFailed for data that do not fit.
    """
    plan = plan or Plan()
    node = find_node(ctx.home)
    if node is None:
        raise NodeUnreachable(f"no node runs in {ctx.home}, and a self-test is one of a node that runs")
    version = _live(ctx, name)
    app = read_app_file(ctx.home)
    data = None if plan.data is None else reference.read(plan.data, None).inputs
    requests = made_up(version.signature, data)
    stated = {**app.releases.get(name, {}), **(rules or {})}
    stated.pop("metrics", None)  # nobody tells here what became of a request
    run = _Run(ctx, version, plan, stated, say)
    with alone(ctx):
        model = ctx.ledger.model(name)
        assert model is not None
        run.put("1", None)
        settings = model_settings(app, name, model.settings)
        ctx.ledger.put_settings(run.model, settings, ctx.now_s())
        run.make_live()
        sent = [encoded(version.signature, one) for one in requests]
        traffic = Traffic(node.http_url, run.model, sent, plan.rate_per_s)
        with traffic.flowing():
            run.warm_up(traffic)
            return run.all(traffic, requests)


def _live(ctx: Context, name: str) -> Version:
    """The version to copy. Raises: ModelNotFound, ReleaseRefused."""
    if is_selftest(name):
        raise ReleaseRefused(f"{name!r} is what a self-test runs on: name the model itself")
    release.known(ctx, name)
    live = ctx.ledger.live(name)
    version = None if live is None else ctx.ledger.version(name, live.number)
    if version is None:
        raise ReleaseRefused(
            f"no version of {name!r} is live, and a self-test tries copies of the live one; release one "
            f"first: interlock release {name} --now"
        )
    why = ""
    if not version.capabilities.side_effect_free:
        why = "has side effects (side_effect_free=false), which made-up requests would really have"
    elif version.capabilities.streaming:
        why = "answers in a stream, which no two versions can be compared by"
    if why:
        raise ReleaseRefused(
            f"version {version.number} of {name!r} {why}: nothing was run; register the model a second time "
            "under another name without that, and test the gates there"
        )
    return version


class _Run:
    """One self-test under way. Numbers of versions only grow: "1" is the copy that is live at first."""

    def __init__(
        self, ctx: Context, version: Version, plan: Plan, rules: Mapping[str, Any], say: Say
    ) -> None:
        self.model = selftest_model(version.model)
        self._ctx = ctx
        self._version = version
        self._plan = plan
        self._rules = rules
        policy = release_policy(AppFile(), version.model, rules)
        self._policy = settled(policy, version, version)
        self._say = say
        self._began_s = time.monotonic()
        self._number = 1

    def put(self, number: str, fault: Fault | None) -> Version:
        """Record a copy of the live version: the same artifact under another name."""
        placement = self._version.placement
        if fault is not None and fault.kind == "slow" and placement is Placement.INLINE:
            placement = Placement.THREAD  # to sleep in the worker's loop would hold up the clients of others
        copy = msgspec.structs.replace(
            self._version, model=self.model, number=number, fault=fault, placement=placement
        )
        self._ctx.ledger.put_version(copy, self._ctx.now_s())
        return copy

    def make_live(self) -> None:
        """Raises: ReleaseFailed."""
        row = release.release_now(self._ctx, self.model, "1")
        row = poll_release(self._ctx.ledger.release, row.id, ENDS_S)
        if row.state is not ReleaseState.DONE:
            raise ReleaseFailed(f"the copy to be live did not come up: {row.reason}")

    def warm_up(self, traffic: Traffic) -> None:
        """Raises: ReleaseRefused if it answers nothing."""
        self._say(f"{self.model}: a copy of version {self._version.number} is live; asking it")
        until_s = time.monotonic() + ENDS_S
        while traffic.asked < _WARM and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        if traffic.failed >= traffic.asked:
            raise ReleaseRefused(
                f"version {self._version.number} of {self._version.model!r} answers none of {traffic.asked} "
                f"requests ({traffic.told}); give rows that it can answer: --data FILE"
            )

    def all(self, traffic: Traffic, requests: list[Tensors]) -> Report:
        """Try the same version, then each fault."""
        blocks = Blocks(self._policy)
        left_out = {
            one.title: why for one in self._plan.faults if (why := why_not(one, self._version, self._policy))
        }
        faults = [one for one in self._plan.faults if one.title not in left_out]
        trials: list[Trial] = []
        for number in range(self._plan.trials):
            self._say(f"the same version, {number + 1} of {self._plan.trials} …")
            blocks.begin()
            trials.append(
                self._try(
                    None, None, traffic, self._share_s(len(faults) + self._plan.trials - number), blocks
                )
            )
        blocks.begin()
        has_rows = self._version.signature.batch_axis == 0
        for number, fault in enumerate(faults):
            placed, share = aimed(fault, requests, has_rows)
            if not share:
                left_out[fault.title] = "the requests are too alike: none would be concerned, or all"
                continue
            met = fault if fault.kind == "slow" else msgspec.structs.replace(fault, level=share)
            self._say(f"{met.title} …")
            trials.append(self._try(placed, met, traffic, self._share_s(len(faults) - number)))
            if trials[-1].outcome == "promoted":
                self.make_live()  # what comes next is to be compared with a version that is well
        return report(
            self._version,
            self._policy,
            self._plan.rate_per_s,
            time.monotonic() - self._began_s,
            trials,
            blocks,
            left_out,
        )

    def _share_s(self, left: int) -> float:
        """How long the next of the trials that are left may take: what one does not need, the others have."""
        return max(self._began_s + self._plan.limit_s - time.monotonic(), 1.0) / left

    def _try(
        self,
        fault: Fault | None,
        met: Fault | None,
        traffic: Traffic,
        limit_s: float,
        blocks: Blocks | None = None,
    ) -> Trial:
        """Release a copy with the fault, and follow it; `met` is the fault as the requests meet it."""
        self._number += 1
        number, ledger = str(self._number), self._ctx.ledger
        live = ledger.live(self.model)
        assert live is not None
        self.put(number, fault)
        asked, failed = traffic.asked, traffic.failed
        row = release.release_canary(self._ctx, self.model, number, self._rules)
        until_s, held, told = time.monotonic() + limit_s, "", ""
        while not row.state.finished:
            if row.state is ReleaseState.PAUSED or time.monotonic() > until_s:
                held = row.reason if row.state is ReleaseState.PAUSED else f"undecided after {limit_s:.0f} s"
                with suppress(InterlockError):  # it is being decided just now
                    release.abort(self._ctx, self.model)
                row = poll_release(ledger.release, row.id, ENDS_S)
                break
            time.sleep(LOOK_S)
            if blocks is not None:
                blocks.look(self._counts(row, live.number))
            row = ledger.release(row.id)
            step = f"{row.state}, share {row.weight:g}"
            if step != told and not row.state.finished:
                self._say(f"  {step}")
                told = step
        found = self._ended(row, live.number, held, met)
        found = msgspec.structs.replace(found, asked=traffic.asked - asked, failed=traffic.failed - failed)
        why = ", ".join(found.gates) or ("" if found.outcome == "promoted" else found.reason)
        self._say(f"  {found.outcome} after {found.seconds:.1f} s{': ' if why else ''}{why}")
        return found

    def _ended(self, row: ReleaseRow, live: str, held: str, met: Fault | None) -> Trial:
        """What became of a release. Raises: ReleaseFailed if the copy was not even tried."""
        events = events_of(self._ctx, row)
        looks = [
            (snapshot, action)
            for _, _, snapshot, action in decisions(events)
            if isinstance(action, RollBack | Promote)
        ]
        if row.state is ReleaseState.FAILED and not row.epoch:
            raise ReleaseFailed(
                f"a copy ({'as it is' if met is None else met.title}) did not come up: {row.reason}"
            )
        policy, decided = policy_of(row), looks[-1][0].ramp if looks else None
        judgement = judge(self._counts(row, live) if decided is None else decided.epochs, policy)
        at_s = {event.kind: event.time_s for event in events}
        began_s, ended_s = at_s.get("release.rolling_back"), at_s.get("release.failed")
        outcome: Outcome = "promoted" if row.state is ReleaseState.DONE else "held"
        if outcome == "held" and looks and isinstance(looks[-1][1], RollBack):
            outcome = "rolled back"
        threshold = next((gate.log10_threshold for gate in judgement.gates if gate.kind is Kind.ALARM), 0.0)
        return Trial(
            fault=met,
            outcome=outcome,
            gates=alarms(judgement) if outcome == "rolled back" else (),
            reason=held if outcome == "held" and held else row.reason,
            requests=judgement.candidate_requests,
            pairs=pairs_run(judgement.pairs),
            seconds=(row.finished_s or row.changed_s) - row.requested_s,
            asked=0,
            failed=0,
            to_zero_s=ended_s - began_s if outcome == "rolled back" and began_s and ended_s else None,
            bound=None if met is None else bound(met, policy, threshold * log(10.0)),
        )

    def _counts(self, row: ReleaseRow, live: str) -> tuple[EpochTally, ...]:
        return tally(row, live, self._ctx.ledger.epochs(row.id), read_all(run_folder(self._ctx.home)))
