"""An A/B test on a real node: units stick, feedback finds its arm by the id of its request alone, the better
version wins, and a control that is killed loses none of it."""

import http.client
import json
import random
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from interlock.core.feedback import Metric
from interlock.core.policy import Policy, Share
from interlock.core.request import parse_request_id
from interlock.registry.feedback import FeedbackStore
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.mirroring import settled
from interlock.rollout.plan import AB
from interlock.rollout.replay import replay
from tests.app.nodes import RunningNode, put_python, until
from tests.app.traffic import Threads

pytestmark = pytest.mark.server

FACTORS = {3: "1", 5: "2", 7: "3"}
CLICKS = {"1": 0.15, "2": 0.15, "3": 0.75}
POLICY = Policy(
    arms=(Share("2", 0.3), Share("3", 0.3)),
    metrics=(Metric("click", age_s=1.0),),
    unit="header",
    guardrails=("errors",),
)


class Visitors(Threads):
    """Each asks twice and clicks or not, by the version that answered; told by the id in the answer."""

    def __init__(self, node: RunningNode) -> None:
        self.versions: dict[str, set[str]] = defaultdict(set)
        self.units: dict[str, set[int | None]] = defaultdict(set)
        self.answers = 0
        self.refused: list[bytes] = []
        self._port = node.node.http_port
        super().__init__(*(partial(self._visit, k) for k in range(3)))

    def seen(self) -> set[str]:
        return {version for seen in list(self.versions.values()) for version in seen}

    def _visit(self, index: int) -> None:
        chance, number = random.Random(index), 0
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        while not self._stop.wait(0.004):
            number += 1
            who = f"{index}-{number}"
            for _ in range(2):
                version, id = self._ask(connection, who)
                self.versions[who].add(version)
                self.units[who].add(parse_request_id(id.encode()).unit)
            if chance.random() < CLICKS[version]:
                self._tell(connection, id)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, who: str) -> tuple[str, str]:
        data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 1.0]}]}
        connection.request("POST", "/v2/models/m/infer", json.dumps(data), {"x-interlock-unit": who})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            self.refused.append(body)
        self.answers += 1
        return FACTORS[round(json.loads(body)["outputs"][0]["data"][0] / 2.0)], answer.headers[
            "interlock-request-id"
        ]

    def _tell(self, connection: http.client.HTTPConnection, id: str) -> None:
        connection.request("POST", "/feedback", json.dumps({"id": id, "name": "click", "value": True}))
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200 or json.loads(body) != {"accepted": 1}:
            self.refused.append(body)


@pytest.mark.timeout(180)
def test_the_version_that_is_clicked_more_wins_though_control_is_killed(interlock_home: Path) -> None:
    for factor, number in FACTORS.items():
        put_python(interlock_home, "m", number, float(factor))
    with RunningNode(interlock_home, workers=2) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        ledger = Ledger(interlock_home / "ledger.db")
        candidate = ledger.version("m", "2")
        assert candidate is not None
        with Visitors(node) as visitors:
            until(lambda: visitors.answers > 100, "100 answers")
            policy = settled(POLICY, None, candidate)
            release = ledger.request_release("m", "2", AB, time.time(), policy=policy).id
            until(lambda: ledger.release(release).state is ReleaseState.RAMPING, "the test")
            until(lambda: visitors.seen() == {"1", "2", "3"}, "answers of all three")
            time.sleep(1.0)  # for the other worker, and for who was in the middle of a visit
            visitors.versions.clear()
            visitors.units.clear()
            until(lambda: len(visitors.versions) > 60, "60 visits")
            held = dict(visitors.versions), dict(visitors.units)
            node.kill("control")
            until(lambda: ledger.release(release).state.finished, "the verdict", 90.0)
            row = ledger.release(release)
            found = visitors.answers
            until(lambda: visitors.answers > found + 50, "50 answers")
        assert not visitors.refused
        assert (row.state, row.number) == (ReleaseState.DONE, "3"), row
        assert ledger.live("m") == row
        # Who was in the middle of a visit when it began may have seen two versions.
        changed = [who for who, seen in held[0].items() if len(seen) != 1]
        assert len(changed) <= 3 and len(held[0]) > 60
        assert sum(len(seen) == 1 and None not in seen for seen in held[1].values()) >= len(held[1]) - 3
        assert replay(ledger.events("m", 0, 100_000)) == []
        store = FeedbackStore(interlock_home)
        clicked = store.summary(release)["click"]
        assert clicked[2][0] > clicked[1][0] and all(mean == 1.0 for _, mean in clicked.values())
        store.close()
        ledger.close()


@pytest.mark.beside
def test_feedback_is_refused_whole_and_survives_without_control(interlock_home: Path) -> None:
    put_python(interlock_home, "m", "1", 3.0)
    with RunningNode(interlock_home, workers=1) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        connection = http.client.HTTPConnection("127.0.0.1", node.node.http_port, timeout=15)

        def tell(body: object) -> tuple[int, dict[str, object]]:
            connection.request("POST", "/feedback", json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        good = {"id": "1-0-0-a-18c2f-3", "name": "click", "value": 1}
        status, said = tell([good, {**good, "id": "mine"}])
        assert status == 400 and "feedback item 1: request id" in str(said["error"])
        node.kill("control")
        assert tell(good) == (200, {"accepted": 1})
        connection.request("GET", "/feedback")
        answer = connection.getresponse()
        assert answer.status == 405 and answer.read()
        connection.close()
    store = FeedbackStore(interlock_home)
    store.take_in()
    assert store.summary(1) == {"click": {0: (1, 1.0)}}
    store.close()
