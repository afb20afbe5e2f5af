"""Which memory is a version's, and a canary on a real node that leaks."""

import time
from pathlib import Path

import pytest

from interlock.app.memory import process_memory
from interlock.core.letters import ChildStatus, Report
from interlock.core.model import Placement, Signature, Version
from interlock.core.policy import Policy
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.memory import Process
from interlock.rollout.memory_gate import LEAST_POINTS
from interlock.rollout.plan import CANARY
from tests.app.nodes import RunningNode, put_onnx, until
from tests.app.traffic import WITHIN_S, Traffic, as_asked, ended, kinds, serving

LEAKS = (
    "kept, plain = [], self.predict; self.predict = lambda i: kept.append(os.urandom(100_000)) or plain(i)"
)


def version(number: str, limit: int | None = None) -> Version:
    return Version(
        "m",
        number,
        "sha256:" + "a" * 64,
        "python",
        "",
        Signature((), ()),
        placement=Placement.EXECUTOR,
        memory_limit_bytes=limit,
    )


def supervisor(*children: ChildStatus) -> Report:
    return Report("n", "supervisor", 1, 1, 1, 1, True, children=children)


def test_an_executor_is_its_version_s_and_the_workers_are_everybody_s() -> None:
    report = supervisor(
        ChildStatus("control", 10, 3, resident_bytes=1),
        ChildStatus("worker-0", 11, 4, resident_bytes=20),
        ChildStatus("worker-1", 12, 6, resident_bytes=22),
        ChildStatus("x-m-1", 13, 5, resident_bytes=50),
        ChildStatus("x-m-12", 14, 9, resident_bytes=60),
    )

    def of(which: Version | None, read: int = 0) -> Process | None:
        return process_memory(report, which, 1000, lambda pid: read, lambda: 777)

    assert of(version("1")) == Process(50, 5, 1000, 777)
    assert of(version("12", limit=90)) == Process(60, 9, 90, 777)
    assert of(None) == Process(42, 6, None, 777)
    assert of(version("1"), read=55) == Process(55, 5, 1000, 777), "the system knows more than a Report"
    assert of(version("3")) is None
    assert process_memory(None, version("1"), 1000) is None


def test_what_is_just_being_started_is_not_known() -> None:
    report = supervisor(ChildStatus("worker-0", 11, 4, resident_bytes=20), ChildStatus("worker-1"))
    assert process_memory(report, None, 1000, lambda pid: 0) is None


@pytest.mark.beside
@pytest.mark.server
@pytest.mark.timeout(240)
def test_a_version_that_keeps_100_kb_of_each_request_is_not_promoted(interlock_home: Path) -> None:
    policy = Policy(margin=0.01, slower=50.0, budget=1000.0)
    with serving(interlock_home, LEAKS) as (_, ledger, traffic):
        release = ledger.request_release("m", "2", CANARY, time.time(), policy=policy).id
        waits = (ReleaseState.RAMPING, ReleaseState.PREPARING, ReleaseState.REQUESTED)
        until(lambda: ledger.release(release).state not in waits, "a decision", WITHIN_S)
        row = ledger.release(release)
        assert row.state is ReleaseState.PAUSED and row.weight == 0.0, row
        assert row.reason.startswith("memory: ") and "more with each of its runs" in row.reason
        until(lambda: traffic.factors() == {3}, "all requests back at version 1")
        assert traffic.failed == 0
        paused = kinds(ledger, release)["release.paused"]  # a replay decides it again
        assert paused.body["snapshot"]["snapshot"]["ramp"]["memory"][0]["candidate"]


@pytest.mark.server
@pytest.mark.timeout(240)
def test_a_version_in_the_workers_is_watched_too_and_promoted(interlock_home: Path) -> None:
    put_onnx(interlock_home, "m", "1", 3.0)
    put_onnx(interlock_home, "m", "2", 5.0)
    with RunningNode(interlock_home, workers=2) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        ledger = Ledger(interlock_home / "ledger.db")
        try:
            with Traffic(node).flowing():
                row = ended(ledger, as_asked(ledger))
            assert row.state is ReleaseState.DONE, row
            record = kinds(ledger, row.id)["release.switching"].body["snapshot"]
            (memory,) = record["snapshot"]["ramp"]["memory"]
            assert memory["place"] == "workers" and len(memory["candidate"]) >= LEAST_POINTS
        finally:
            ledger.close()
