"""The metrics page: read back by Prometheus' own parser and its linter, against the counts that went in."""

import math
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric as Parsed
from prometheus_client.parser import text_string_to_metric_families

from interlock.core.letters import VersionState
from interlock.core.route import COPY_ARM
from interlock.core.state import BOUNDS_S, BUCKETS, ArmCounts, ArmKey, Histogram, PairCounts, bucket
from interlock.export.prometheus import MAX_SERIES_PER_MODEL, METRICS, OUTCOMES, REASONS, render
from interlock.registry.rows import ReleaseRow, ReleaseState
from tests.operations.homes import a_node, a_report, a_status

NODE = a_node(
    a_report(
        "worker-0", a_status("iris", "1", VersionState.READY), a_status("iris", "2", VersionState.LOADING)
    ),
    a_report("worker-1", a_status("iris", "1", VersionState.READY)),
    workers=2,
)


def a_histogram(*seconds: float) -> Histogram:
    counts = [0] * BUCKETS
    for value in seconds:
        counts[bucket(value)] += 1
    return Histogram(tuple(counts), sum(seconds))


COUNTS = {
    ArmKey("iris", "1", 1, 0, 0): ArmCounts(
        dispatched=10, ok=6, invalid=1, failed=1, timed_out=1, cancelled=1, refused=2, rows=60, batches=3,
        compute_ns=2_500_000_000, not_ok_ns=10_000_000, total=a_histogram(0.01, 0.02),
        queue=a_histogram(1e-6), compute=a_histogram(200.0),
    ),
    ArmKey("iris", "1", 1, 1, 0): ArmCounts(dispatched=5, ok=4, lost=1),
    ArmKey("iris", "2", 2, 0, 1): ArmCounts(dispatched=7, ok=7),
}  # fmt: skip
COPIES = ArmCounts(dispatched=5, ok=4, lost=1, rows=5, batches=2, compute_ns=3_000_000_000)
MIRRORED = {
    **COUNTS,
    ArmKey("iris", "2", 2, 1, 1): ArmCounts(ok=7, pairs=PairCounts(good=3, worse=2, dropped=1)),
    ArmKey("iris", "1", 2, 1, COPY_ARM): COPIES,
    ArmKey("iris", "1", 2, 2, COPY_ARM): COPIES,
}


def parsed(page: bytes) -> dict[str, Parsed]:
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def value(page: bytes, sample: str, **labels: str) -> float:
    # The parser gives every counter's sample the ending that OpenMetrics wants; Triton's names lack it.
    found = [
        s.value
        for family in parsed(page).values()
        for s in family.samples
        if s.name in (sample, f"{sample}_total") and labels.items() <= s.labels.items()
    ]
    assert found, f"no sample {sample} with {labels}"
    return sum(found)


def test_what_goes_in_comes_out() -> None:
    page = render(COUNTS, NODE)
    assert value(page, "interlock_requests_total", model="iris", release="1", outcome="ok") == 10
    assert value(page, "interlock_requests_total", version="2", arm="1", outcome="ok") == 7
    assert value(page, "interlock_lost_requests_total", version="1") == 1
    assert value(page, "interlock_dispatched_requests_total", version="1") == 15
    assert value(page, "interlock_compute_seconds_total", version="1") == 2.5
    assert value(page, "interlock_batch_rows_sum", version="1") == 60
    assert value(page, "interlock_batch_rows_count", version="1") == 3
    assert value(page, "interlock_process_up", process="worker-1") == 1
    assert value(page, "interlock_process_resident_bytes", process="worker-0") == 64 << 20
    assert value(page, "interlock_version_state", version="1", state="ready") == 2
    assert value(page, "interlock_version_state", version="2", state="loading") == 1
    assert value(page, "interlock_version_state", version="2", state="ready") == 0
    assert value(page, "interlock_desired_revision") == 3


def test_tritons_names_mean_what_triton_means() -> None:
    page = render(COUNTS, NODE)
    reasons = {r: value(page, "nv_inference_request_failure", version="1", reason=r) for r in REASONS}
    assert reasons == {"REJECTED": 3, "CANCELED": 1, "BACKEND": 2, "OTHER": 1}
    assert value(page, "nv_inference_request_success", version="1") == 10
    assert value(page, "nv_inference_count", version="1") == 60
    assert value(page, "nv_inference_exec_count", version="1") == 3
    assert value(page, "nv_inference_request_duration_us", version="1") == 20_000  # answered ones only
    # Of each request, not of each batch: what it did not spend in the queue.
    assert value(page, "nv_inference_queue_duration_us", version="1") == 1
    assert value(page, "nv_inference_compute_infer_duration_us", version="1") == 19_999
    assert sorted(o for outcomes in REASONS.values() for o in outcomes) == sorted({*OUTCOMES} - {"ok"})


def test_copies_take_time_and_are_nobodys_requests() -> None:
    plain, page = render(COUNTS, NODE), render(MIRRORED, NODE)
    for name in ("interlock_requests_total", "interlock_dispatched_requests_total", "nv_inference_count"):
        assert value(page, name, version="1") == value(plain, name, version="1")
    assert value(page, "interlock_lost_requests_total", version="1") == 1
    assert value(page, "interlock_compute_seconds_total", version="1") == 8.5
    assert value(page, "interlock_batch_rows_sum", version="1") == 70
    assert value(page, "interlock_copies_total", version="1", release="2", outcome="ok") == 8
    pairs = {
        outcome: value(page, "interlock_pairs_total", version="2", release="2", outcome=outcome)
        for outcome in PairCounts.__struct_fields__
    }
    assert {name: count for name, count in pairs.items() if count} == {"good": 3, "worse": 2, "dropped": 1}


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_a_histogram_counts_exactly_what_is_at_or_below_each_bound(seconds: list[float]) -> None:
    counts = {ArmKey("m", "1", 1, 0, 0): ArmCounts(total=a_histogram(*seconds))}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in parsed(render(counts, NODE))["interlock_request_duration_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["stage"] == "total"
    }
    for le, count in buckets.items():
        assert count == sum(s <= float(le) for s in seconds)
    bounds = [float(le) for le in buckets]
    assert bounds[-1] == math.inf and set(bounds[:-1]) <= set(BOUNDS_S)
    assert all(b == pytest.approx(2 * a) for a, b in zip(bounds, bounds[1:-1], strict=False))


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_name_survives_as_a_label(model: str, reason: str) -> None:
    # The parser splits a page at more line ends than the format has; only "\n" ends a line of it.
    for end in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        model = model.replace(end, "")
    page = render({ArmKey(model, "1", 1, 0, 0): ArmCounts(ok=3)}, NODE)
    assert value(page, "interlock_requests_total", model=model, outcome="ok") == 3


def test_releases_are_timed_by_how_they_ended() -> None:
    def row(number: int, state: ReleaseState, finished_s: float | None) -> ReleaseRow:
        return ReleaseRow(number, "iris", "1", "now", state, "", None, 0, 10.0, 10.0, finished_s)

    rows = [
        row(1, ReleaseState.DONE, 12.0),
        row(2, ReleaseState.DONE, 11.5),
        row(3, ReleaseState.PREPARING, None),
    ]
    page = render({}, NODE, rows)
    assert value(page, "interlock_release_seconds_sum", state="done") == 3.5
    assert value(page, "interlock_release_seconds_count", state="done") == 2
    assert "preparing" not in page.decode()


def test_series_are_bounded_and_the_newest_stay() -> None:
    many: Mapping[ArmKey, ArmCounts] = {
        ArmKey("iris", str(n), n, epoch, 0): ArmCounts(ok=n) for n in range(1, 1001) for epoch in (0, 1)
    }
    page = render(many, NODE)
    families = parsed(page)
    ok = [s for s in families["interlock_requests"].samples if s.labels["outcome"] == "ok"]
    assert len(ok) == MAX_SERIES_PER_MODEL
    assert {int(s.labels["release"]) for s in ok} == set(range(1001 - MAX_SERIES_PER_MODEL, 1001))
    assert len(families["nv_inference_count"].samples) == MAX_SERIES_PER_MODEL
    assert len(page) < 1_000_000


def test_every_metric_has_its_type_help_and_labels() -> None:
    rows = [ReleaseRow(1, "iris", "1", "now", ReleaseState.DONE, "", None, 0, 1.0, 2.0, 2.0)]
    families = parsed(render(MIRRORED, NODE, rows))
    for metric in METRICS:
        family = families.get(metric.name) or families[metric.name.removesuffix("_total")]
        assert family.type == metric.kind and family.documentation == metric.help
        assert family.samples
        for sample in family.samples:
            assert {*sample.labels} - {"le"} == {*metric.labels}
    assert len(families) == len(METRICS)


def test_the_reference_lists_every_metric(repository: Path) -> None:
    page = (repository / "docs/reference/metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in page.splitlines()
    assert sum(line.startswith("| `") for line in page.splitlines()) == len(METRICS)


@pytest.mark.server
@pytest.mark.beside
def test_prometheus_own_linter_finds_nothing_in_our_names(repository: Path) -> None:
    promtool = repository / ".cache" / "promtool"
    assert promtool.exists(), f"{promtool} is missing; run: make .cache/promtool"
    rows = [ReleaseRow(1, "iris", "1", "now", ReleaseState.DONE, "", None, 0, 1.0, 2.0, 2.0)]
    done = subprocess.run(
        [promtool, "check", "metrics"], input=render(COUNTS, NODE, rows), capture_output=True, timeout=60
    )
    complaints = (done.stdout + done.stderr).decode().splitlines()
    # Triton's names break the naming rules (no _total, microseconds), and are given.
    assert [line for line in complaints if not line.startswith("nv_")] == []
    assert any(line.startswith("nv_") for line in complaints), "the linter said nothing: did it run?"
