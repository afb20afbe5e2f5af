"""What a decision about a release sees: its row, the workers, and the counts of both versions."""

import msgspec

from interlock.core.letters import Report, VersionStatus
from interlock.evidence.exceedance import Cut
from interlock.registry.rows import ReleaseRow
from interlock.rollout.gate import Load
from interlock.rollout.memory import MemoryView
from interlock.rollout.metrics import MetricTally
from interlock.rollout.tally import EpochTally


class WorkerView(msgspec.Struct, frozen=True):
    """One worker that should be there, as its latest Report shows it; `connected` is False when it is not.

    `status` is that of the version being released, None where the worker does not have it.
    """

    process: str
    connected: bool
    seen_revision: int = -1
    revision: int = -1
    status: VersionStatus | None = None


class Limits(msgspec.Struct, frozen=True):
    """Seconds. `load_s`: for loading everywhere; `switch_s`: for the swap; `settle_s`: after which a worker
    that has the version and has read the route counts as switched, though it still works on other models."""

    load_s: float = 120.0
    switch_s: float = 30.0
    settle_s: float = 2.0


class RampView(msgspec.Struct, frozen=True):
    """What a canary adds to a snapshot. `now_s` is Unix time, as in the ledger; `epochs` those so far with
    their counts; `rate_per_s` the requests of the model, None while it is not measured yet; `next_cuts`
    those of an epoch that would begin now; `crashes` how often the candidate ended its process lately under
    this release; `load` what the utilisation is projected from; `scored` what feedback says; `others` the
    epochs of the candidates of an A/B test beyond the first; `memory` what each candidate's process held,
    None where that is not known."""

    now_s: float
    epochs: tuple[EpochTally, ...] = ()
    rate_per_s: float | None = None
    next_cuts: tuple[Cut, ...] = ()
    crashes: int = 0
    load: Load | None = None
    scored: tuple[MetricTally, ...] = ()
    others: tuple[tuple[EpochTally, ...], ...] = ()
    memory: tuple[MemoryView | None, ...] = ()


class Variant(msgspec.Struct, frozen=True):
    """A candidate of an A/B test beyond the first: what a snapshot says of the first one."""

    number: str
    digest: str
    workers: tuple[WorkerView, ...]
    quarantined: str | None = None
    crashes: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """All that a decision sees. `waited_s` is how long the release has been in its state under the eyes of
    this control; `revision` the Desired that carries the state, before which a Report says nothing of it;
    `quarantined` why the supervisor gave the version up, None if it did not.
    """

    release: ReleaseRow
    live: ReleaseRow | None
    digest: str
    revision: int
    waited_s: float
    workers: tuple[WorkerView, ...]
    quarantined: str | None = None
    limits: Limits = Limits()
    ramp: RampView | None = None
    variants: tuple[Variant, ...] = ()


def view_of(process: str, report: Report | None, model: str, number: str) -> WorkerView:
    """What a worker's latest Report (None: it is not connected) says about one version."""
    if report is None:
        return WorkerView(process, connected=False)
    statuses = (s for s in report.versions if s.model == model and s.number == number)
    return WorkerView(process, True, report.seen_revision, report.revision, next(statuses, None))
