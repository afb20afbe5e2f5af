"""Nothing in a home folder is for other users, whatever the umask of who works on it."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import interlock
from tests.app.nodes import RunningNode, until

pytestmark = [pytest.mark.server, pytest.mark.beside]

SOURCE = """
class Twice:
    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}
    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(home: Path) -> list[str]:
    modes: dict[Path, int] = {}
    for path in (home, *home.rglob("*")):
        with suppress(FileNotFoundError):  # the node writes on meanwhile: hidden parts come and go
            modes[path] = path.lstat().st_mode
    return [f"{stat.filemode(mode)} {path}" for path, mode in modes.items() if stat.S_IMODE(mode) & 0o077]


def test_a_home_is_private(interlock_home: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    (artifact / "tables").mkdir(parents=True)
    (artifact / "tables" / "rows.txt").write_text("1")
    (artifact / "twice.py").write_text(SOURCE)
    interlock.register("twice", artifact)
    assert open_to_others(interlock_home) == []
    # Used as a library, it leaves the process as it was.
    assert os.umask(0) == 0

    command = [sys.executable, "-m", "interlock.cli.main", "release", "twice", "1", "--now"]
    subprocess.run(command, check=True, capture_output=True)
    with RunningNode(interlock_home) as node:
        node.log.chmod(0o600)  # the test's own
        node.wait_ready()
        until(lambda: node.answers("twice", 4.0), "the release")
        assert open_to_others(interlock_home) == []


def test_what_the_command_line_makes_is_private(interlock_home: Path, tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(SOURCE)
    for words in (
        ["register", "twice", str(tmp_path / "twice.py")],
        ["up", "--detach", "--http-port", "0", "--admin-port", "0"],
        ["down"],
    ):
        subprocess.run([sys.executable, "-m", "interlock.cli.main", *words], check=True, capture_output=True)
        assert open_to_others(interlock_home) == [], words
