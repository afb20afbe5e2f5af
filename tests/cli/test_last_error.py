"""What a start that fails says of the reason: from the logs of this start, and of the disk."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from interlock.cli.last_error import last_error


def line(at_s: float, level: str, message: str, **fields: str) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + ".000Z"
    return json.dumps({"time": stamp, "level": level, "message": message, **fields}) + "\n"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def test_the_process_that_failed_speaks_before_the_supervisor(logs: Path) -> None:
    now_s = time.time()
    ended = line(now_s, "error", "ended by itself", name="control", reason="ended with exit code 1")
    (logs / "node.log").write_text(ended + line(now_s, "info", "leaving"))
    (logs / "worker-0.log").write_text(line(now_s, "info", "serving"))
    said = f"last error, in {logs / 'node.log'}: control: ended by itself: ended with exit code 1"
    assert last_error(logs.parent, now_s - 5) == said
    raised = "Traceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left on device\n"
    (logs / "control.log").write_text(line(now_s, "info", "started") + raised)
    assert last_error(logs.parent, now_s - 5) == (
        f"last error, in {logs / 'control.log'}: OSError: [Errno 28] No space left on device"
    )
    with (logs / "control.log").open("a") as log:
        log.write(line(now_s, "error", "broke off", traceback="Traceback:\n  File x\nValueError: no\n"))
    assert last_error(logs.parent, now_s - 5).endswith("control.log: broke off: ValueError: no")


def test_errors_of_an_earlier_start_are_not_told(logs: Path) -> None:
    now_s = time.time()
    (logs / "node.log").write_text(line(now_s - 900, "error", "old") + line(now_s, "info", "started"))
    assert last_error(logs.parent, now_s - 60) == ""
    assert "old" in last_error(logs.parent, now_s - 1000)


def test_a_full_disk_is_told_first(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (logs / "node.log").write_text(line(time.time(), "error", "ended by itself", name="control"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    said = last_error(logs.parent, time.time() - 60)
    assert said.startswith(
        f"the disk of {logs.parent} is full (4,096 bytes free): make room; last error, in "
    )
