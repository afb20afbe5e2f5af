"""The client against a real node whose workers are replaced under load: no request fails."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import interlock
from tests.app.nodes import RunningNode, put_onnx, until

pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow]


def test_workers_that_are_killed_one_after_the_other_fail_no_request(tmp_path: Path) -> None:
    put_onnx(tmp_path, "scale", "1", 2.0)
    with RunningNode(tmp_path, workers=2) as node:
        node.wait_ready()
        node.release("scale", "1")
        until(lambda: node.answers("scale", 4.0), "version 1")
        ended, counts, failed = threading.Event(), [0] * 4, list[Exception]()
        with interlock.Client(node.node.http_url, timeout_s=30.0, retries=20) as client:
            row = np.array([[2.0, 1.0]])

            def ask(at: int) -> None:
                while not ended.is_set():
                    try:
                        assert client.predict("scale", row).array.tolist() == [[4.0, 2.0]]
                        counts[at] += 1
                    except Exception as error:
                        failed.append(error)

            def moved(least: int) -> bool:
                return min(counts) > least

            threads = [threading.Thread(target=ask, args=(at,)) for at in range(4)]
            for thread in threads:
                thread.start()
            try:
                for name in sorted(node.pids("worker")):
                    until(partial(moved, min(counts) + 20), "answers")
                    node.kill(name)
                    until(node.is_ready, "ready again")
                before = list(counts)
                until(lambda: sum(counts) > sum(before) + 50, "answers after")
            finally:
                ended.set()
                for thread in threads:
                    thread.join(60)
        assert not failed, failed[:3]
        assert min(counts) > 20
