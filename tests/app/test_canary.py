"""Canaries on a real node: a bad version comes back by itself, a good one is promoted, whoever is killed
meanwhile."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from interlock.core.policy import Policy
from interlock.registry.ledger import Ledger
from interlock.registry.rows import Event, ReleaseRow, ReleaseState
from interlock.rollout.plan import CANARY
from interlock.rollout.replay import decisions, replay
from tests.app.nodes import RunningNode, put_python, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

QUICK = Policy(margin=0.03, slower=4.0)
"""Wide margins: what these tests are about is decided in seconds, also on a machine that does other
things."""
WITHIN_S = 90.0

FAILS = (
    "plain = self.predict; self.predict = lambda i: "
    "1 / 0 if any(v > 19 and v % 10 < 3 for v in i['x'][:, 0]) else plain(i)"
)
ENDS = "plain = self.predict; self.predict = lambda i: os._exit(9) if 27 in i['x'][:, 0] else plain(i)"


class Traffic:
    """Four clients that ask all the time; the values 0 to 99 in turn, so that 30 % are below 3 in their
    last digit."""

    def __init__(self, node: RunningNode) -> None:
        self.answers: Counter[tuple[int, int]] = Counter()
        self._node = node
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(4)]

    def _ask(self, index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._node.node.http_port, timeout=15)
        turn = index
        while not self._stop.wait(0.008):
            turn += 1
            value = float(20 + turn % 100)
            data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 1.0]}]}
            connection.request("POST", "/v2/models/m/infer", json.dumps(data).encode())
            answer = connection.getresponse()
            body = json.loads(answer.read())
            factor = round(body["outputs"][0]["data"][0] / value) if answer.status == 200 else 0
            self.answers[answer.status, factor] += 1
        connection.close()

    def factors(self, least: int = 60) -> set[int]:
        """The versions that answered since the last call, by their factor."""
        self.answers = Counter()
        until(lambda: self.answers.total() >= least, f"{least} answers")
        return {factor for (status, factor), count in self.answers.items() if status == 200}

    @property
    def failed(self) -> int:
        return sum(count for (status, factor), count in self.answers.items() if status != 200)

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        for thread in self._threads:
            thread.start()
        try:
            until(lambda: self.answers.total() >= 300, "300 answers")
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


@contextmanager
def serving(home: Path, on_load: str, workers: int = 1) -> Iterator[tuple[RunningNode, Ledger, Traffic]]:
    """A node on which version 1 is live and asked, and version 2, which does `on_load`, is registered."""
    put_python(home, "m", "1", 3.0)
    put_python(home, "m", "2", 5.0, on_load)
    with RunningNode(home, workers=workers) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        ledger = Ledger(home / "ledger.db")
        try:
            with Traffic(node).flowing() as traffic:
                yield node, ledger, traffic
        finally:
            ledger.close()


def start(ledger: Ledger, policy: Policy = QUICK) -> int:
    return ledger.request_release("m", "2", CANARY, time.time(), policy=policy).id


def has_epochs(ledger: Ledger, release: int, least: int) -> bool:
    return len(ledger.epochs(release)) >= least


def ended(ledger: Ledger, release: int) -> ReleaseRow:
    until(lambda: ledger.release(release).state.finished, "the end of the canary", WITHIN_S)
    return ledger.release(release)


def kinds(ledger: Ledger, release: int) -> dict[str, Event]:
    """The last event of each kind of a release; and nothing in the log is decided otherwise by a replay."""
    events = [event for event in ledger.events("m") if event.body.get("release") == release]
    assert replay(events) == [] and decisions(events)
    return {event.kind: event for event in events}


def test_a_version_that_fails_on_three_requests_in_ten_comes_back_by_itself(interlock_home: Path) -> None:
    with serving(interlock_home, FAILS) as (_, ledger, traffic):
        row = ended(ledger, start(ledger))
        assert row.state is ReleaseState.FAILED, row
        assert "errors: bad answers: candidate" in row.reason and row.reason.endswith("version 1 stays live")
        assert 0 < traffic.failed <= QUICK.budget
        assert traffic.factors() == {3} and traffic.failed == 0
        seen = kinds(ledger, row.id)
        assert seen["release.failed"].time_s - seen["release.rolling_back"].time_s < 1.0


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
