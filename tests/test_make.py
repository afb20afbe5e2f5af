"""Holds the Makefile to what it promises: it lists itself, and says what to do where it cannot go on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The files that make reads, in a folder with no environment yet."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    # What the make that runs these tests was told is not for the one that they run.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "PYTHON"):
        environment.pop(name, None)
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_target(bare: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (bare / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    done = make(bare, "help")
    assert done.returncode == 0
    assert re.findall(r"^  make (\w+) ", done.stdout, re.MULTILINE) == phony[1].split()


def test_an_interpreter_that_is_too_old_is_refused_by_name(bare: Path) -> None:
    old = bare / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(bare, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr and str(old) in done.stderr
    assert not (bare / ".venv").exists()


def test_without_any_interpreter_make_says_how_to_name_one(bare: Path) -> None:
    tools = bare / "tools"
    tools.mkdir()
    for name in ("make", "bash", "sh"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    done = make(bare, "install", path=str(tools))
    assert done.returncode != 0
    assert "make PYTHON=/path/to/python3.11" in done.stderr


@pytest.mark.parametrize(
    ("apt_get_leaves_with", "tried", "advised"),
    [
        (0, ["update -qq", "install -qq -y python3-venv"], False),
        (100, ["update -qq"], True),
    ],
)
def test_a_missing_package_is_installed_or_named_with_the_command(
    bare: Path, apt_get_leaves_with: int, tried: list[str], advised: bool
) -> None:
    tools, log = bare / "tools", bare / "apt.log"
    tools.mkdir()
    for name, code in {"id": "echo 0", "apt-get": f"echo $* >> {log}; exit {apt_get_leaves_with}"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{code}\n")
        (tools / name).chmod(0o755)
    python = tools / "python3.11"
    python.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    python.chmod(0o755)
    done = make(bare, "install", f"PYTHON={python}", path=f"{tools}:{os.environ['PATH']}")
    assert done.returncode != 0  # this interpreter makes no environment either way
    assert log.read_text().splitlines() == tried
    assert ("apt-get install python3-venv" in done.stderr) is advised


@pytest.mark.parametrize("name", ["constraints.txt", "tests/clients/kserve-requirements.txt"])
def test_a_frozen_set_pins_every_line_and_names_no_machine(name: str) -> None:
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 30
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []


def test_compiled_modules_are_kept_even_where_the_environment_forbids_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each process of each test compiles all anew, which took half of the time of `make check`."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = make(bare, "--eval", 'probe: ; @echo "[$${PYTHONDONTWRITEBYTECODE-}]"', "probe")
    assert done.stdout == "[]\n", done
