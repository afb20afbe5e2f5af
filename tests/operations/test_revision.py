"""Holds what git is asked: real repositories, none at all, slow and hostile ones."""

import os
import time
from pathlib import Path

import pytest

from interlock.operations.revision import is_changed, revision, without_credentials
from tests.operations.repositories import git, repository


def test_commit_branch_state_and_remote(tmp_path: Path) -> None:
    made = repository(tmp_path / "r")
    git(tmp_path / "r", "remote", "add", "origin", "https://me:secret@example.org/team/r.git")
    folder = tmp_path / "r" / "models"
    folder.mkdir()
    found = revision(folder)
    assert found is not None
    assert (found.commit, found.branch, found.dirty) == (made, "train", False)
    assert (found.remote, found.folder) == ("https://example.org/team/r.git", str(tmp_path / "r"))
    (folder / "new.onnx").write_text("x")
    assert (again := revision(folder)) is not None and again.dirty is False  # not a file of the repository's
    (tmp_path / "r" / "train.py").write_text("print(2)\n")
    assert (again := revision(folder)) is not None and again.dirty is True
    assert is_changed(tmp_path / "r" / "train.py") and is_changed(folder / "new.onnx")


def test_a_detached_head_has_no_branch(tmp_path: Path) -> None:
    repository(tmp_path)
    git(tmp_path, "checkout", "-q", "--detach")
    found = revision(tmp_path)
    assert found is not None and (found.branch, found.remote) == (None, None)


def test_no_repository_no_commit_and_no_git_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision(tmp_path) is None
    assert revision(tmp_path / "absent") is None
    assert is_changed(tmp_path / "x") is None
    git(tmp_path, "init", "-q")
    assert revision(tmp_path) is None
    repository(tmp_path)
    assert revision(tmp_path) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision(tmp_path) is None


def test_a_hook_of_another_repository_does_not_redirect_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = repository(tmp_path / "mine")
    repository(tmp_path / "other", other="x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    found = revision(tmp_path / "mine")
    assert found is not None and found.commit == made


def test_a_git_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    assert revision(tmp_path, limit_s=0.3) is None
    assert time.monotonic() - started < 20


def test_a_repository_cannot_make_git_run_a_program(tmp_path: Path) -> None:
    repository(tmp_path)
    trap = tmp_path / ".git" / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    trap.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(trap))
    assert revision(tmp_path) is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://token@example.org/a.git", "https://example.org/a.git"),
        ("https://u:p@w@example.org:8443/a.git#x", "https://example.org:8443/a.git"),
        ("ssh://git:secret@example.org/a", "ssh://example.org/a"),
        ("git:secret@example.org:a.git", "git@example.org:a.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/srv/a.git", "/srv/a.git"),
        ("https://u:p@[bad", "https://[bad"),
    ],
)
def test_remotes_show_no_secret(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
