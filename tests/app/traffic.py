"""Keeps a real node busy while a release goes on: clients that ask all the time, and what they heard."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from interlock.core.policy import Policy
from interlock.registry.ledger import Ledger
from interlock.registry.rows import Event, ReleaseRow, ReleaseState
from interlock.rollout.mirroring import settled
from interlock.rollout.plan import CANARY, SHADOW
from interlock.rollout.replay import decisions, replay
from tests.app.nodes import RunningNode, put_python, until

QUICK = Policy(margin=0.03, slower=4.0)
"""Wide margins: what these tests are about is decided in seconds, also on a machine that does other
things."""
WITHIN_S = 90.0
CLIENTS = 4

FAILS = (
    "plain = self.predict; self.predict = lambda i: "
    "1 / 0 if any(v > 19 and v % 10 < 3 for v in i['x'][:, 0]) else plain(i)"
)


class Threads:
    """Clients in threads of their own, for as long as a `with` block; each looks at `_stop`."""

    def __init__(self, *work: Callable[[], None]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one) for one in work]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Traffic:
    """Four clients that ask all the time; the values 0 to 99 in turn, so that 30 % are below 3 in their
    last digit.

    `answers` counts by status and factor (0: none) and tells who answered; `broken` holds when
    (`time.monotonic`) a connection broke off instead.
    """

    def __init__(self, node: RunningNode) -> None:
        self.answers: Counter[tuple[int, int]] = Counter()
        self.broken: list[float] = []
        self._port = node.node.http_port
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(CLIENTS)]

    def _ask(self, index: int) -> None:
        turn = index
        connection = self._connection()
        while not self._stop.wait(0.008):
            turn += 1
            try:
                self._note(*self._one(connection, float(20 + turn % 100)))
            except (OSError, http.client.HTTPException):
                self.broken.append(time.monotonic())
                connection.close()
                connection = self._connection()
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)

    def _one(self, connection: http.client.HTTPConnection, value: float) -> tuple[int, int]:
        data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 1.0]}]}
        connection.request("POST", "/v2/models/m/infer", json.dumps(data).encode())
        answer = connection.getresponse()
        body = json.loads(answer.read())
        return answer.status, round(body["outputs"][0]["data"][0] / value) if answer.status == 200 else 0

    def _note(self, status: int, factor: int) -> None:
        with self._lock:
            self.answers[status, factor] += 1

    def factors(self, least: int = 60) -> set[int]:
        """The versions that answered since the last call, by their factor."""
        with self._lock:
            self.answers = Counter()
        until(lambda: self.answers.total() >= least, f"{least} answers")
        return {factor for (status, factor), count in self.answers.items() if status == 200}

    @property
    def failed(self) -> int:
        """Requests that were not answered well, those that broke off included."""
        bad = sum(count for (status, factor), count in self.answers.items() if status != 200)
        return bad + len(self.broken)

    def stop(self) -> None:
        """End all clients; what they heard stays."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        for thread in self._threads:
            thread.start()
        try:
            until(lambda: self.answers.total() >= 300, "300 answers")
            yield self
        finally:
            self.stop()


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


def as_asked(ledger: Ledger, policy: Policy = QUICK, *, strategy: str = CANARY) -> int:
    """Ask for version 2 as the operation does: with all that the user left out settled by what both allow."""
    incumbent, candidate = ledger.version("m", "1"), ledger.version("m", "2")
    assert candidate is not None
    policy = settled(policy, incumbent, candidate, answers=strategy != SHADOW)
    return ledger.request_release("m", "2", strategy, time.time(), policy=policy).id


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
