"""Decides what a node's /metrics says: Interlock's own names, and Triton's for dashboards that exist already.

Text exposition format 0.0.4, written by hand: the counts are cumulative sums read from mapped blocks, which a
client library's own registry would only copy. Latencies are histograms with buckets of a factor of two, so
that nodes can be added up. Series are bounded: of each model the newest releases and versions have their own.

Source of Triton's names and meanings: its user guide, "Metrics", inference request metrics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from interlock import __version__
from interlock.core.letters import VersionState
from interlock.core.route import COPY_ARM
from interlock.core.state import BOUNDS_S, ArmCounts, ArmKey, Histogram, PairCounts
from interlock.operations.status import NodeStatus, is_executor, quarantine, version_order, why_not_ready
from interlock.registry.rows import ReleaseRow

K = TypeVar("K")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_SERIES_PER_MODEL = 32
"""How many versions, and how many releases, of one model have series of their own: the newest ones."""

BUCKET_STEP = 4
"""Every fourth bound of the counters is exported: buckets of a factor of two, 10 us to 84 s."""

_BUCKETS = tuple((index, repr(BOUNDS_S[index])) for index in range(0, len(BOUNDS_S), BUCKET_STEP))


class Metric(NamedTuple):
    """One metric family. `labels` are the names of its labels; docs/reference/metrics.md lists them all."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_ARM = ("model", "version", "release", "arm", "outcome")
_VERSION = ("model", "version")

METRICS: tuple[Metric, ...] = (
    Metric("interlock_build_info", "gauge", ("version",), "Always 1; the label is Interlock's version."),
    Metric("interlock_node_ready", "gauge", (), "1 while every worker is ready."),
    Metric("interlock_node_start_time_seconds", "gauge", (), "When the node was started, Unix time."),
    Metric("interlock_desired_revision", "gauge", (), "Revision of the newest Desired."),
    Metric(
        "interlock_process_up",
        "gauge",
        ("process",),
        "1 while the process is connected to control; an executor: while it runs.",
    ),
    Metric(
        "interlock_process_revision", "gauge", ("process",), "Newest Desired that the process carries out."
    ),
    Metric(
        "interlock_process_restarts_total",
        "counter",
        ("process",),
        "How often the process had to be started again since the node was started.",
    ),
    Metric("interlock_process_resident_bytes", "gauge", ("process",), "Resident memory of the process."),
    Metric(
        "interlock_version_state",
        "gauge",
        ("model", "version", "state"),
        "Number of processes in which the version is in the state.",
    ),
    Metric("interlock_quarantined_versions", "gauge", (), "Versions given up after repeated crashes."),
    Metric(
        "interlock_release_seconds",
        "summary",
        ("model", "state"),
        "Time from the request of a release to its end, by how it ended.",
    ),
    Metric(
        "interlock_requests_total",
        "counter",
        _ARM,
        "Requests settled, by release, arm and outcome; refused ones never reached a model.",
    ),
    Metric(
        "interlock_copies_total",
        "counter",
        ("model", "version", "release", "outcome"),
        "Copies of requests that the version ran beside the one that clients were sent to, by outcome.",
    ),
    Metric(
        "interlock_pairs_total",
        "counter",
        ("model", "version", "release", "outcome"),
        "Requests that the incumbent and the candidate (the label) both ran, by what became of the two.",
    ),
    Metric("interlock_dispatched_requests_total", "counter", _VERSION, "Requests handed to the version."),
    Metric(
        "interlock_lost_requests_total",
        "counter",
        _VERSION,
        "Requests that a crash cut off: dispatched and never settled.",
    ),
    Metric(
        "interlock_request_duration_seconds",
        "histogram",
        ("model", "version", "stage"),
        "Time of a request in a stage: queue, compute, or total.",
    ),
    Metric("interlock_batch_rows", "summary", _VERSION, "Rows in each batch that was computed, copies too."),
    Metric(
        "interlock_compute_seconds_total",
        "counter",
        _VERSION,
        "Time spent in predict, once a batch, copies too.",
    ),
    Metric("nv_inference_request_success", "counter", _VERSION, "Triton: requests that were answered."),
    Metric(
        "nv_inference_request_failure",
        "counter",
        ("model", "version", "reason"),
        "Triton: requests that failed, by reason.",
    ),
    Metric("nv_inference_count", "counter", _VERSION, "Triton: rows that were computed."),
    Metric("nv_inference_exec_count", "counter", _VERSION, "Triton: batches that were computed."),
    Metric(
        "nv_inference_request_duration_us",
        "counter",
        _VERSION,
        "Triton: cumulative time of requests that were answered, in us.",
    ),
    Metric(
        "nv_inference_queue_duration_us", "counter", _VERSION, "Triton: cumulative time in the queue, in us."
    ),
    Metric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        _VERSION,
        "Triton: cumulative time in which requests were computed, in us.",
    ),
)

_NO_PAIRS = PairCounts()
_NOTHING = ArmCounts()

_BY_NAME = {metric.name: metric for metric in METRICS}

OUTCOMES = ("ok", "invalid", "failed", "timed_out", "cancelled", "lost", "refused")
"""Values of `outcome`, each a field of ArmCounts."""

PAIR_OUTCOMES = PairCounts.__struct_fields__
"""Values of `outcome` of the pairs, each a field of PairCounts. They overlap: a good pair agrees or not."""

STAGES = ("queue", "compute", "total")

REASONS: dict[str, tuple[str, ...]] = {
    "REJECTED": ("refused", "timed_out"),
    "CANCELED": ("cancelled",),
    "BACKEND": ("failed", "lost"),
    "OTHER": ("invalid",),
}
"""Triton's reasons of a failure, and the outcomes that each one holds."""


def render(
    counts: Mapping[ArmKey, ArmCounts], node: NodeStatus, releases: Sequence[ReleaseRow] = ()
) -> bytes:
    """The whole page. `counts` are node-wide and cumulative; `releases` those to be timed, in any order."""
    pages = (_node(node), _processes(node), _releases(releases), _requests(counts), _versions(counts))
    return "".join(line for page in pages for line in page).encode()


def _node(node: NodeStatus) -> Iterator[str]:
    yield from _family("interlock_build_info", [((__version__,), 1)])
    yield from _family("interlock_node_ready", [((), int(not why_not_ready(node)))])
    yield from _family("interlock_node_start_time_seconds", [((), node.started_s)])
    yield from _family("interlock_desired_revision", [((), node.revision)])
    yield from _family("interlock_quarantined_versions", [((), len(quarantine(node)))])


def _processes(node: NodeStatus) -> Iterator[str]:
    reports = sorted(node.processes, key=lambda process: process.report.process)
    yield from _family("interlock_process_up", [((p.report.process,), int(p.up)) for p in reports])
    alive = [process.report for process in reports if process.up]
    revisions = [((p.report.process,), p.report.revision) for p in reports if p.up and not is_executor(p)]
    yield from _family("interlock_process_revision", revisions)
    yield from _family(
        "interlock_process_restarts_total", [((p.report.process,), p.restarts) for p in reports]
    )
    yield from _family("interlock_process_resident_bytes", [((r.process,), r.resident_bytes) for r in alive])
    states: dict[tuple[str, ...], int] = {}
    for status in (status for report in alive for status in report.versions):
        for state in VersionState:  # zeros too: a series that comes and goes breaks alerts
            key = (status.model, status.number, state.value)
            states[key] = states.get(key, 0) + (status.state is state)
    yield from _family("interlock_version_state", states.items())


def _releases(releases: Sequence[ReleaseRow]) -> Iterator[str]:
    times: dict[tuple[str, ...], tuple[int, float]] = {}
    for row in releases:
        if row.finished_s is not None:
            count, total_s = times.get((row.model, row.state.value), (0, 0.0))
            spent_s = max(row.finished_s - row.requested_s, 0.0)
            times[row.model, row.state.value] = (count + 1, total_s + spent_s)
    yield from _summary("interlock_release_seconds", times)


def _requests(counts: Mapping[ArmKey, ArmCounts]) -> Iterator[str]:
    merged: dict[tuple[str, str, int, int], list[int]] = {}
    copies: dict[tuple[str, str, int], ArmCounts] = {}
    pairs: dict[tuple[str, str, int], PairCounts] = {}
    for key, arm in counts.items():
        whose = key.model, key.version, key.release
        if key.arm == COPY_ARM:
            copies[whose] = copies.get(whose, ArmCounts()).merge(arm)
            continue
        if arm.pairs != _NO_PAIRS:
            pairs[whose] = pairs.get(whose, _NO_PAIRS).merge(arm.pairs)
        cells = merged.setdefault((key.model, key.version, key.release, key.arm), [0] * len(OUTCOMES))
        for index, outcome in enumerate(OUTCOMES):
            cells[index] += getattr(arm, outcome)
    shown = _newest(((model, release) for model, _, release, _ in merged), lambda release: release)
    yield from _family(
        "interlock_requests_total",
        (
            ((model, version, str(release), str(arm), outcome), value)
            for (model, version, release, arm), cells in sorted(merged.items())
            if release in shown[model]
            for outcome, value in zip(OUTCOMES, cells, strict=True)
        ),
    )
    yield from _outcomes("interlock_copies_total", copies, OUTCOMES)
    yield from _outcomes("interlock_pairs_total", pairs, PAIR_OUTCOMES)


def _outcomes(
    name: str, counts: Mapping[tuple[str, str, int], Any], outcomes: tuple[str, ...]
) -> Iterator[str]:
    """One series for each outcome of each version in a release; the newest releases alone."""
    shown = _newest(((model, release) for model, _, release in counts), lambda release: release)
    yield from _family(
        name,
        (
            ((model, version, str(release), outcome), getattr(found, outcome))
            for (model, version, release), found in sorted(counts.items())
            if release in shown[model]
            for outcome in outcomes
        ),
    )


def _versions(counts: Mapping[ArmKey, ArmCounts]) -> Iterator[str]:
    every: dict[tuple[str, str], ArmCounts] = {}
    ran: dict[tuple[str, str], ArmCounts] = {}
    for key, arm in counts.items():
        pair = (key.model, key.version)
        # Copies take a model's time, and are nobody's requests.
        ran[pair] = ran[pair].merge(arm) if pair in ran else arm
        asked = arm if key.arm != COPY_ARM else _NOTHING
        every[pair] = every[pair].merge(asked) if pair in every else asked
    shown = _newest(every, version_order)
    merged = [(pair, arm) for pair, arm in sorted(every.items()) if pair[1] in shown[pair[0]]]

    def values(name: str, value_of: Callable[[ArmCounts], float]) -> Iterator[str]:
        return _family(name, [(pair, value_of(arm)) for pair, arm in merged])

    yield from values("interlock_dispatched_requests_total", lambda arm: arm.dispatched)
    yield from values("interlock_lost_requests_total", lambda arm: arm.lost)
    yield from _head("interlock_request_duration_seconds")
    for pair, arm in merged:
        for stage in STAGES:
            yield from _histogram("interlock_request_duration_seconds", (*pair, stage), getattr(arm, stage))
    rows: dict[tuple[str, ...], tuple[int, float]] = {
        pair: (ran[pair].batches, ran[pair].rows) for pair, _ in merged
    }
    yield from _summary("interlock_batch_rows", rows)
    compute_s = [(pair, ran[pair].compute_ns / 1e9) for pair, _ in merged]
    yield from _family("interlock_compute_seconds_total", compute_s)
    yield from values("nv_inference_request_success", lambda arm: arm.ok)
    yield from _family(
        "nv_inference_request_failure",
        (
            ((*pair, reason), sum(getattr(arm, outcome) for outcome in outcomes))
            for pair, arm in merged
            for reason, outcomes in REASONS.items()
        ),
    )
    yield from values("nv_inference_count", lambda arm: arm.rows)
    yield from values("nv_inference_exec_count", lambda arm: arm.batches)
    yield from values("nv_inference_request_duration_us", lambda arm: round(arm.ok_s * 1e6))
    yield from values("nv_inference_queue_duration_us", lambda arm: round(arm.queue.sum_s * 1e6))
    yield from values(
        "nv_inference_compute_infer_duration_us",
        lambda arm: max(round((arm.ok_s - arm.queue.sum_s) * 1e6), 0),
    )


def _newest(pairs: Iterable[tuple[str, K]], order: Callable[[K], Any]) -> dict[str, set[K]]:
    """Of each model the newest that have series of their own."""
    by_model: dict[str, set[K]] = {}
    for model, value in pairs:
        by_model.setdefault(model, set()).add(value)
    return {m: set(sorted(found, key=order)[-MAX_SERIES_PER_MODEL:]) for m, found in by_model.items()}


def _head(name: str) -> Iterator[str]:
    metric = _BY_NAME[name]
    yield f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind}\n"


def _family(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Iterator[str]:
    yield from _head(name)
    labels = _BY_NAME[name].labels
    for values, value in samples:
        yield f"{name}{_labels(labels, values)} {_number(value)}\n"


def _summary(name: str, samples: Mapping[tuple[str, ...], tuple[int, float]]) -> Iterator[str]:
    yield from _head(name)
    for values, (count, total) in sorted(samples.items()):
        labels = _labels(_BY_NAME[name].labels, values)
        yield f"{name}_sum{labels} {_number(total)}\n{name}_count{labels} {count}\n"


def _histogram(name: str, values: tuple[str, ...], histogram: Histogram) -> Iterator[str]:
    names = _BY_NAME[name].labels
    below = 0
    start = 0
    for index, bound in _BUCKETS:
        below += sum(histogram.counts[start : index + 1])
        start = index + 1
        yield f"{name}_bucket{_labels((*names, 'le'), (*values, bound))} {below}\n"
    total = below + sum(histogram.counts[start:])
    yield f"{name}_bucket{_labels((*names, 'le'), (*values, '+Inf'))} {total}\n"
    labels = _labels(names, values)
    yield f"{name}_sum{labels} {_number(histogram.sum_s)}\n{name}_count{labels} {total}\n"


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _number(value: float) -> str:
    return repr(value)
