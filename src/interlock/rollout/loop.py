"""Owns the tick: reads one snapshot, asks the plan, writes the decision down, then tells the node."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec

from interlock.core.clock import Clock, monotonic
from interlock.core.errors import InterlockError, LedgerError
from interlock.core.letters import Desired, Report
from interlock.core.model import Model, ModelSettings, Placement, Version
from interlock.core.state import ArmCounts, ArmKey
from interlock.registry.ledger import Ledger
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.desired import ModelRow, build_desired
from interlock.rollout.gate import Load
from interlock.rollout.memory import Memory, Watch
from interlock.rollout.plan import (
    BLUE_GREEN,
    COMPARED,
    NEXT_STATE,
    Action,
    Hold,
    Pause,
    Promote,
    Weight,
    as_record,
    next_action,
    policy_of,
)
from interlock.rollout.scoring import Feedback, Scoring
from interlock.rollout.snapshot import Limits, RampView, Snapshot, Variant, WorkerView, view_of
from interlock.rollout.tally import next_cuts, sent_in_all, tally, tally_all

log = logging.getLogger("interlock.rollout")

TICK_S = 0.05
"""Between two looks while a release is open."""
POLL_S = 0.25
"""Between two looks into the ledger while none is: another process may have written to it."""
RAMP_TICK_S = 0.1
"""Between two looks while all that is open gathers evidence: each reads the counters of the whole node."""
RATE_OVER_S = 10.0
RATE_AT_LEAST_S = 1.0
"""Over how long the traffic of a model is measured, at most and at least."""
_GATHERING = (ReleaseState.RAMPING, ReleaseState.PAUSED, ReleaseState.KEEPING)

Counts = Callable[[], Mapping[ArmKey, ArmCounts]]


class Node(msgspec.Struct, frozen=True):
    """Which node this is, and the names of the workers that must all have a version before it goes live."""

    name: str
    workers: tuple[str, ...]
    limits: Limits = Limits()


class RolloutLoop:
    """Carries out the releases of one node's ledger.

    `reports` gives the latest Report of each connected process by its name; `publish` gets each new
    Desired. `settle` turns a model's settings in the ledger into those in force (the app file has the last
    word). `counts` reads the cumulative counts of the whole node; `crashes` how often a version ended its
    process lately under the release that asks for it; `memory` reads what its process, or (None) the workers,
    hold. `on_end` gets each release by evidence that was open and has ended, whoever ended it. `feedback` is
    where metrics are read. `step` runs in a thread, one at a time, and calls them all from there.
    """

    def __init__(
        self,
        ledger: Ledger,
        node: Node,
        reports: Callable[[], Mapping[str, Report]],
        publish: Callable[[Desired], None],
        settle: Callable[[Model], ModelSettings] = lambda model: model.settings,
        counts: Counts = lambda: {},
        crashes: Callable[[Version], int] = lambda version: 0,
        on_end: Callable[[ReleaseRow], None] = lambda row: None,
        memory: Memory = lambda version: None,
        feedback: Feedback | None = None,
        now_s: Callable[[], float] = time.time,
        clock: Clock = monotonic,
    ) -> None:
        self.desired: Desired | None = None
        self._ledger = ledger
        self._node = node
        self._reports = reports
        self._publish = publish
        self._settle = settle
        self._counts = counts
        self._crashes = crashes
        self._on_end = on_end
        self._memory = Watch(memory)
        self._scoring = Scoring(feedback)
        self._now_s = now_s
        self._clock = clock
        self._wake = asyncio.Event()
        self._read = -1
        self._open: tuple[ReleaseRow, ...] = ()
        self._states: dict[int, tuple[tuple[ReleaseState, int], float, int]] = {}
        self._anew = False
        self._traffic: dict[int, deque[tuple[float, int]]] = {}
        # Replaced as a whole: other threads read it.
        self.looked: Mapping[str, tuple[Snapshot, Action]] = {}
        """Of each model with an open release: what the last look saw, and what it decided."""

    @property
    def is_busy(self) -> bool:
        """Whether a release is under way."""
        return bool(self._open)

    def poke(self) -> None:
        """Look at once: something has changed. On the event loop."""
        self._wake.set()

    def send_anew(self) -> None:
        """Publish under a new revision though nothing in it changed: processes then read anew what the
        Desired does not hold (the quarantine). On the event loop."""
        self._anew = True
        self._wake.set()

    async def run(self) -> None:
        """Tick until cancelled. An error is logged and the tick tried again: the ledger may be busy."""
        while True:
            self._wake.clear()
            try:
                step = asyncio.ensure_future(asyncio.to_thread(self.step))
                try:
                    acted = await asyncio.shield(step)
                except asyncio.CancelledError:
                    await step  # the ledger is closed after us, not under us
                    raise
            except InterlockError as error:
                log.error("a tick failed", extra={"fields": {"error": error.message}})
                acted = False
            if acted:
                continue
            try:
                async with asyncio.timeout(self._tick_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def step(self) -> bool:
        """One tick; True if it did something, so that the next is due at once.

        Raises: LedgerError.
        """
        acted = self._refresh()
        if not self._open:
            self._memory.look(self._clock())
        counts = self._counts() if any(_is_counted(row) for row in self._open) else {}
        self.looked = {
            model: look for model, look in self.looked.items() if model in {row.model for row in self._open}
        }
        for row in self._open:
            try:
                acted = self._advance(row, counts) or acted
            except InterlockError:
                raise
            except Exception:
                # Whatever is wrong with one model's release, those of the others go on.
                log.exception("a look failed", extra={"fields": {"model": row.model, "release": row.id}})
        return acted

    def _tick_s(self) -> float:
        if not self.is_busy:
            return POLL_S
        return RAMP_TICK_S if all(row.state in _GATHERING for row in self._open) else TICK_S

    def _refresh(self) -> bool:
        """Read the rows and publish, if any process has written to the ledger."""
        stood = self._ledger.data_version()
        anew, self._anew = self._anew, False
        known = max((report.seen_revision for report in self._reports().values()), default=-1)
        # A node that remembers a later revision than its ledger (which was put back from a copy, or is new)
        # would wait for ever for one above it.
        behind = self.desired is not None and known > self.desired.revision
        if stood == self._read and not anew and not behind:
            return False
        before_open = {row.id for row in self._open if row.strategy in COMPARED}
        self._open = tuple(self._ledger.open_releases())
        self._scoring.keep({row.id for row in self._open})
        for gone in before_open - {row.id for row in self._open}:
            self._on_end(self._ledger.release(gone))
        by_model = {row.model: row for row in self._open}
        rows = [self._row(model, by_model.get(model.name)) for model in self._ledger.models()]
        desired = build_desired(self._node.name, -1, rows)
        before = self.desired
        same = before is not None and msgspec.structs.replace(before, revision=-1) == desired
        if anew or behind or not same:
            revision = self._ledger.next_revision()
            while revision <= known:
                revision = self._ledger.next_revision()
            self.desired = msgspec.structs.replace(desired, revision=revision)
            self._publish(self.desired)
        self._read = stood
        return not same

    def _row(self, model: Model, open_release: ReleaseRow | None) -> ModelRow:
        live = self._ledger.live(model.name)
        versions: dict[str, Version] = {}
        named = [release.number for release in (live, open_release) if release is not None]
        if open_release is not None:
            named += [arm.version for arm in policy_of(open_release).arms]
        for number in named:
            if number not in versions:
                version = self._ledger.version(model.name, number)
                if version is not None:
                    versions[number] = version
        settled = msgspec.structs.replace(model, settings=self._settle(model))
        return ModelRow(
            settled,
            live,
            open_release,
            versions,
            self._ledger.last_done(model.name) if live is None else None,
        )

    def _advance(self, row: ReleaseRow, counts: Mapping[ArmKey, ArmCounts]) -> bool:
        snapshot = self._snapshot(row, counts)
        action = next_action(snapshot)
        self.looked = {**self.looked, row.model: (snapshot, action)}
        if isinstance(action, Hold):
            return False
        state = NEXT_STATE[type(action)]
        reason = getattr(action, "reason", "")
        now_s = self._now_s()
        try:
            self._ledger.advance(
                row.id,
                state,
                reason,
                as_record(snapshot, action),
                time_s=now_s,
                was=row,
                epoch=_epoch_after(row, action, now_s),
                number=action.number if isinstance(action, Promote) else None,
            )
        except LedgerError:
            now = self._ledger.release(row.id)
            if (now.state, now.epoch, now.policy) == (row.state, row.epoch, row.policy):
                raise
            # Somebody else moved it since we looked; the next look shows how.
            return True
        against = state in (ReleaseState.FAILED, ReleaseState.ROLLING_BACK, ReleaseState.PAUSED)
        log.log(
            logging.WARNING if against else logging.INFO,
            "a release goes on",
            extra={"fields": {"model": row.model, "release": row.id, "state": state, "reason": reason}},
        )
        return True

    def _snapshot(self, row: ReleaseRow, counts: Mapping[ArmKey, ArmCounts]) -> Snapshot:
        reports = self._reports()
        now_s = self._clock()
        since_s, revision = self._entered(row, now_s)
        version = self._ledger.version(row.model, row.number)
        live = self._ledger.live(row.model)
        return Snapshot(
            release=row,
            live=live,
            digest="" if version is None else version.digest,
            revision=revision,
            waited_s=now_s - since_s,
            workers=self._workers(row.model, row.number, reports),
            quarantined=_quarantined(version, revision, reports),
            limits=self._node.limits,
            ramp=self._ramp(row, live, version, counts, now_s) if _is_counted(row) else None,
            variants=tuple(self._variants(row, revision, reports)),
        )

    def _variants(self, row: ReleaseRow, revision: int, reports: Mapping[str, Report]) -> Iterator[Variant]:
        """The candidates of an A/B test beyond the first, while there are several."""
        if row.state not in (ReleaseState.PREPARING, ReleaseState.RAMPING, ReleaseState.PAUSED):
            return
        for arm in policy_of(row).arms[1:]:
            version = self._ledger.version(row.model, arm.version)
            yield Variant(
                arm.version,
                "" if version is None else version.digest,
                self._workers(row.model, arm.version, reports),
                _quarantined(version, revision, reports),
                0 if version is None else self._crashes(version),
            )

    def _workers(self, model: str, number: str, reports: Mapping[str, Report]) -> tuple[WorkerView, ...]:
        return tuple(view_of(name, reports.get(name), model, number) for name in self._node.workers)

    def _ramp(
        self,
        row: ReleaseRow,
        live: ReleaseRow | None,
        version: Version | None,
        counts: Mapping[ArmKey, ArmCounts],
        now_s: float,
    ) -> RampView:
        seen = self._traffic.setdefault(row.id, deque())
        seen.append((now_s, sent_in_all(row.model, counts)))
        while now_s - seen[0][0] > RATE_OVER_S and len(seen) > 2:
            seen.popleft()
        took_s = now_s - seen[0][0]
        # Counts only shrink where somebody moved the file of the retired ones away.
        rate_per_s = max(seen[-1][1] - seen[0][1], 0) / took_s if took_s >= RATE_AT_LEAST_S else None
        view = RampView(self._now_s(), rate_per_s=rate_per_s)
        if live is None or version is None or row.strategy not in COMPARED:
            return view
        places = 1 if version.placement is Placement.EXECUTOR else len(self._node.workers)
        epochs, arms = self._ledger.epochs(row.id), policy_of(row).arms
        if arms:
            first, *others = tally_all(row, arms, live.number, epochs, counts)
        else:
            first, others = tally(row, live.number, epochs, counts), []
        return msgspec.structs.replace(
            view,
            epochs=first,
            others=tuple(others),
            next_cuts=next_cuts(policy_of(row), live, row, counts),
            crashes=self._crashes(version),
            load=None if rate_per_s is None else Load(rate_per_s, places, version.profile.batch_s),
            scored=self._scoring.look(row, live.number, epochs, counts, self._now_s()),
            memory=self._memory.views(row, live, self._ledger.version, counts, rate_per_s, now_s),
        )

    def _entered(self, row: ReleaseRow, now_s: float) -> tuple[float, int]:
        """When this loop first saw the release in its state and epoch, and the revision that told the
        node."""
        assert self.desired is not None
        entered = self._states.get(row.id)
        step = (row.state, row.epoch)
        if entered is None or entered[0] != step:
            entered = (step, now_s, self.desired.revision)
            still_open = {release.id for release in self._open}
            self._states = {id: seen for id, seen in self._states.items() if id in still_open}
            self._traffic = {id: seen for id, seen in self._traffic.items() if id in still_open}
            self._memory.forget(still_open)
            self._states[row.id] = entered
        return entered[1], entered[2]


def _quarantined(version: Version | None, revision: int, reports: Mapping[str, Report]) -> str | None:
    supervisor = reports.get("supervisor")
    if supervisor is None or version is None or supervisor.seen_revision < revision:
        return None
    return supervisor.quarantined.get(version.key)


def _is_counted(row: ReleaseRow) -> bool:
    """Whether decisions about a release need counts, or the time on the wall."""
    return row.strategy in (*COMPARED, BLUE_GREEN)


def _epoch_after(row: ReleaseRow, action: Action, now_s: float) -> RampEpoch | None:
    """The epoch that an action begins."""
    if isinstance(action, Weight):
        return RampEpoch(row.epoch + 1, action.weight, action.cuts, now_s)
    if isinstance(action, Pause) and action.weight is not None and action.weight != row.weight:
        return RampEpoch(row.epoch + 1, action.weight, (), now_s)
    return None
