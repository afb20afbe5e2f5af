"""Holds the environments of models: whole or not there, built once, with pip's own words where it fails."""

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.core.errors import EnvironmentFailed
from interlock.registry import environments
from interlock.registry.environments import build, ensure, installed_version, pip_variables
from interlock.registry.requirements import Requirements
from interlock.runtime.environment import environment_path
from tests.app.nodes import lives, until

# pip runs for real, several times.
pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow]

WANTED = Requirements(("il-tiny==1.0",))


def wheel(folder: Path, name: str, version: str) -> None:
    """A package of one empty module."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            file.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty packages under the names of those that every environment gets."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("il-tiny", "mlflow-skinny", "numpy", "pandas"):
        wheel(folder, name, "1.0")
    wheel(folder, "msgspec", installed_version("msgspec") or "")
    return folder


@pytest.fixture(autouse=True)
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def unanswered() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def start(home: Path, folder: Path, **variables: str) -> "subprocess.Popen[str]":
    code = (
        "import sys; from pathlib import Path; from interlock.registry import environments, requirements\n"
        "home, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "wanted = requirements.Requirements(('il-tiny==1.0',))\n"
        "print(environments.ensure(home, wanted, folder, progress=lambda words: print(words, flush=True)))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home), str(folder)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def left(home: Path) -> list[str]:
    folder = home / "environments"
    return [path.name for path in folder.iterdir() if not path.name.startswith(".lock-")]


def test_it_has_what_was_asked_for_and_this_interlock_only(interlock_home: Path, tmp_path: Path) -> None:
    told: list[str] = []
    digest = ensure(interlock_home, WANTED, tmp_path, progress=told.append)
    python = environment_path(interlock_home, digest) / "bin" / "python"
    code = "import il_tiny, interlock; print(interlock.__file__)"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.check_output([python, "-P", "-c", code], env=variables, text=True).strip()
    assert Path(found).resolve() == Path(environments.__file__).resolve().parents[1] / "__init__.py"
    assert subprocess.call([python, "-c", "import click"], env=variables, stderr=subprocess.DEVNULL) == 1
    assert any("does not have il-tiny==1.0" in words for words in told)
    assert any(words.startswith("pip: Installing") for words in told)
    # The same again costs nothing; a link that leads nowhere (another place of Interlock's) is made anew.
    link = environment_path(interlock_home, digest) / "node" / "interlock"
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    told.clear()
    assert ensure(interlock_home, WANTED, tmp_path, progress=told.append) == digest
    assert not any("building" in words or "pip" in words for words in told)
    assert link.exists()


def test_the_nodes_own_is_used_where_it_fits(interlock_home: Path, tmp_path: Path) -> None:
    ours = Requirements((f"mlflow=={installed_version('mlflow-skinny')}", "pandas"))
    assert ensure(interlock_home, ours, tmp_path) == ""
    assert not interlock_home.exists()


def test_what_cannot_be_had_is_said_in_pips_words_and_leaves_nothing(
    interlock_home: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFailed, match=r"No matching distribution found for il-tiny==9\.0"):
        ensure(interlock_home, Requirements(("il-tiny==9.0",)), tmp_path)
    assert left(interlock_home) == []
    bounded = msgspec.structs.replace(WANTED, constraints=("il-tiny<1",))
    with pytest.raises(EnvironmentFailed, match="il-tiny<1"):
        ensure(interlock_home, bounded, tmp_path)


def test_a_build_has_its_time(interlock_home: Path, tmp_path: Path, unanswered: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PIP_NO_INDEX")
        patch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unanswered}/simple")
        with pytest.raises(EnvironmentFailed, match="not built in its time"):
            ensure(interlock_home, WANTED, tmp_path, time_s=2.0)
    assert left(interlock_home) == []


def test_killed_while_it_is_built_the_next_builds_it_whole(
    interlock_home: Path, tmp_path: Path, unanswered: int
) -> None:
    slow = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"http://127.0.0.1:{unanswered}/simple"}
    first = start(interlock_home, tmp_path, **slow, PIP_RETRIES="0", PIP_DEFAULT_TIMEOUT="1")
    until(lambda: any(interlock_home.glob("environments/.partial-*/pip.log")), "pip")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not any(not name.startswith(".partial-") for name in left(interlock_home))
    second = start(interlock_home, tmp_path)
    said, _ = second.communicate(timeout=60)
    digest = said.split()[-1]
    assert second.returncode == 0 and "building" in said
    assert left(interlock_home) == [digest.removeprefix("sha256:")]
    python = environment_path(interlock_home, digest) / "bin" / "python"
    assert subprocess.call([python, "-c", "import il_tiny, pandas, interlock"]) == 0


def test_two_processes_build_it_once(interlock_home: Path, tmp_path: Path) -> None:
    both = [start(interlock_home, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("building the environment") == 1
    assert said[0].split()[-1] == said[1].split()[-1]
    assert not any(lives(process.pid) for process in both)


def test_a_file_of_the_model_can_be_a_requirement(interlock_home: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "il-own", "2.0")
    wanted = Requirements(("wheels/il_own-2.0-py3-none-any.whl",))
    digest = build(interlock_home, wanted, tmp_path)
    python = environment_path(interlock_home, digest) / "bin" / "python"
    assert subprocess.call([python, "-c", "import il_own"]) == 0


def test_pip_gets_its_settings_and_no_secrets() -> None:
    given = {"PIP_INDEX_URL": "u", "PIP_TARGET": "t", "HTTPS_PROXY": "p", "AWS_SECRET_ACCESS_KEY": "s"}
    found = pip_variables({**given, "INTERLOCK_TOKEN": "t", "PYTHONPATH": "/x", "PATH": "/bin"})
    assert {name for name in found if name in {*given, "INTERLOCK_TOKEN", "PYTHONPATH", "PATH"}} == {
        "PIP_INDEX_URL",
        "HTTPS_PROXY",
        "PATH",
    }
