"""Metrics that cannot be read hold up nothing: what was known stays, and other gates and releases go on."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from interlock.core.errors import LedgerError
from interlock.core.policy import Policy, Share
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.loop import Node, RolloutLoop
from interlock.rollout.metrics import Value
from interlock.rollout.plan import AB
from interlock.rollout.scoring import Scoring
from tests.rollout.test_ab import POLICY, row
from tests.rollout.test_loop import version
from tests.rollout.test_metrics import One


class Shelf:
    """Feedback that can be taken away."""

    def __init__(self) -> None:
        self.taken_ms = 10_000
        self.is_away = False

    def scored(
        self, release: int, name: str, after: tuple[int, str], until_ms: int, age_ms: int, most: int = 0
    ) -> Sequence[Value]:
        if self.is_away:
            raise LedgerError("the database is locked")
        return [One("a", 1, 1, 5_000, 1.0, 5_000)] if after < (5_000, "a") else []


def test_what_was_known_stays_while_feedback_cannot_be_read() -> None:
    shelf = Shelf()
    scoring, release = Scoring(shelf), row(ReleaseState.RAMPING)
    first = scoring.look(release, "1", [], {}, 10.0)
    assert first[0].parts[0].arms[1].count == 1
    shelf.is_away = True
    assert scoring.look(release, "1", [], {}, 11.0) == first
    shelf.is_away = False
    assert scoring.look(release, "1", [], {}, 12.0) == first
    scoring.keep(set())
    shelf.is_away = True
    assert scoring.look(release, "1", [], {}, 13.0) == ()
    assert Scoring(None).look(release, "1", [], {}, 13.0) == ()


def test_a_look_that_fails_stops_no_other_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for model in ("a", "b"):
        ledger.put_version(version(model, "1"), time.time())
        ledger.request_release(model, "1", "now", time.time())
    loop = RolloutLoop(ledger, Node("local", ("worker-0",)), reports=dict, publish=lambda desired: None)
    real = loop._snapshot

    def broken(release, counts):  # type: ignore[no-untyped-def]
        if release.model == "a":
            raise ValueError("what nobody thought of")
        return real(release, counts)

    monkeypatch.setattr(loop, "_snapshot", broken)
    loop.step()
    states = {one.model: one.state for one in ledger.open_releases()}
    assert states == {"a": ReleaseState.REQUESTED, "b": ReleaseState.PREPARING}
    ledger.close()


def test_a_test_of_several_whose_live_version_is_gone_waits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for number in ("1", "2", "3"):
        ledger.put_version(version("m", number), time.time())
    first = ledger.request_release("m", "1", "now", time.time())
    for state in (ReleaseState.PREPARING, ReleaseState.SWITCHING, ReleaseState.DONE):
        ledger.advance(first.id, state, time_s=time.time())
    policy: Policy = msgspec.structs.replace(POLICY, arms=(Share("2", 0.3), Share("3", 0.3)))
    test = ledger.request_release("m", "2", AB, time.time(), policy=policy)
    for state in (ReleaseState.PREPARING, ReleaseState.RAMPING):
        ledger.advance(test.id, state, time_s=time.time())
    ledger.set_live("m", None, time.time())
    loop = RolloutLoop(
        ledger, Node("local", ("worker-0",)), reports=dict, publish=lambda desired: None, feedback=Shelf()
    )
    loop.step()
    snapshot, _ = loop.looked["m"]
    assert snapshot.live is None and ledger.release(test.id).state is ReleaseState.RAMPING
    ledger.close()
