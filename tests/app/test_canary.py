"""Canaries on a real node: a bad version comes back by itself, a good one is promoted, whoever is killed
meanwhile."""

import time
from functools import partial
from pathlib import Path

import pytest

from interlock.core.policy import Policy
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.plan import CANARY
from tests.app.nodes import until
from tests.app.traffic import FAILS, QUICK, WITHIN_S, ended, has_epochs, kinds, serving

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

ENDS = (
    "plain = self.predict; self.predict = lambda i: "
    "os._exit(9) if any(v > 19 and v % 20 == 7 for v in i['x'][:, 0]) else plain(i)"
)
"""On one request in twenty: on one in a hundred it is now and then promoted before it meets one."""


def start(ledger: Ledger, policy: Policy = QUICK) -> int:
    return ledger.request_release("m", "2", CANARY, time.time(), policy=policy).id


def test_a_version_that_fails_on_three_requests_in_ten_comes_back_by_itself(interlock_home: Path) -> None:
    with serving(interlock_home, FAILS) as (_, ledger, traffic):
        row = ended(ledger, start(ledger))
        assert row.state is ReleaseState.FAILED, row
        assert "errors: bad answers: candidate" in row.reason and row.reason.endswith("version 1 stays live")
        assert 0 < traffic.failed <= QUICK.budget
        assert traffic.factors() == {3} and traffic.failed == 0
        seen = kinds(ledger, row.id)
        assert seen["release.failed"].time_s - seen["release.rolling_back"].time_s < 1.0


@pytest.mark.beside
def test_a_version_that_ends_its_process_is_rolled_back_at_once(interlock_home: Path) -> None:
    with serving(interlock_home, ENDS) as (_, ledger, traffic):
        row = ended(ledger, start(ledger))
        assert row.state is ReleaseState.FAILED and "version 2 ended its process" in row.reason, row
        assert traffic.factors() == {3}


def test_a_good_version_is_promoted_by_evidence_though_control_is_killed_twice(interlock_home: Path) -> None:
    with serving(interlock_home, "pass", workers=2) as (node, ledger, traffic):
        release = start(ledger)
        for least in (1, 2):
            until(partial(has_epochs, ledger, release, least), "an epoch", WITHIN_S)
            node.kill("control")
        row = ended(ledger, release)
        assert row.state is ReleaseState.DONE, row
        assert traffic.failed == 0 and traffic.factors() == {5}
        epochs = ledger.epochs(release)
        assert [epoch.number for epoch in epochs] == list(range(1, len(epochs) + 1))
        assert epochs[-1].cuts and len({epoch.weight for epoch in epochs}) > 1
        assert "within margin" in kinds(ledger, release)["release.switching"].body["reason"]


@pytest.mark.beside
def test_what_a_person_does_is_done(interlock_home: Path) -> None:
    never = Policy(margin=1e-5)  # proved after half a million requests at the earliest
    with serving(interlock_home, "pass") as (_, ledger, traffic):
        release = start(ledger, never)
        until(lambda: ledger.release(release).state is ReleaseState.RAMPING, "the first weight")
        ledger.advance(release, ReleaseState.PAUSED, "by hand", time_s=time.time())
        stood = ledger.release(release).weight
        assert traffic.factors(500) == {3, 5} and ledger.release(release).weight == stood > 0
        ledger.advance(release, ReleaseState.ROLLING_BACK, "by hand", time_s=time.time())
        assert ended(ledger, release).state is ReleaseState.FAILED
        assert traffic.factors() == {3} and traffic.failed == 0
        again = start(ledger, never)
        until(lambda: ledger.release(again).state is ReleaseState.RAMPING, "the first weight")
        ledger.advance(again, ReleaseState.SWITCHING, "by hand", time_s=time.time())
        assert ended(ledger, again).state is ReleaseState.DONE
        assert traffic.factors() == {5}
