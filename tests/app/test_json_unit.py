"""A canary on a real node in which users stick to a version by a field of their requests' parameters."""

import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest

from interlock.core.policy import Policy
from interlock.registry.rows import ReleaseState
from interlock.rollout.plan import CANARY
from tests.app.nodes import RunningNode, until
from tests.app.traffic import WITHIN_S, ended, kinds, serving

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

BY_USER = Policy(budget=1e6, slower=50.0, unit="json:user")


class Asker:
    """One connection, which asks in the name of a user: (status, factor of the version or the message)."""

    def __init__(self, node: RunningNode) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", node.node.http_port, timeout=15)

    def __call__(self, user: Any) -> tuple[int, Any]:
        data = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [50.0, 1.0]}
        sent = json.dumps({"parameters": {"user": user}, "inputs": [data]}).encode()
        self._connection.request("POST", "/v2/models/m/infer", sent)
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            return answer.status, found["error"]
        return 200, round(found["outputs"][0]["data"][0] / 50.0)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.beside
def test_users_meet_one_version_each_until_a_person_promotes_it(interlock_home: Path) -> None:
    with serving(interlock_home, "pass", workers=2) as (node, ledger, traffic):
        release = ledger.request_release("m", "2", CANARY, time.time(), policy=BY_USER).id
        until(lambda: ledger.release(release).weight >= 0.2, "a share of a fifth", WITHIN_S)
        askers = [Asker(node) for _ in range(6)]  # the two workers take connections by chance
        ask = askers[0]

        def met() -> dict[int, set[tuple[int, Any]]]:
            return {user: {ask(user) for ask in askers} for user in range(60)}

        # A worker reads of the share a moment before the other one.
        until(lambda: all(len(answers) == 1 for answers in met().values()), "one version for each user")
        assert {answer for answers in met().values() for answer in answers} == {(200, 3), (200, 5)}
        status, error = ask([1])
        assert status == 400 and error.startswith(
            "parameter 'user', by which requests stick to a version, is"
        )
        before = traffic.failed
        ledger.advance(release, ReleaseState.SWITCHING, "promoted by hand", time_s=time.time())
        assert ended(ledger, release).state is ReleaseState.DONE
        assert {ask(user) for user in range(60)} == {(200, 5)} and ask([1]) == (200, 5)
        assert before == traffic.failed == 0
        for each in askers:
            each.close()
        assert kinds(ledger, release)["release.done"]
