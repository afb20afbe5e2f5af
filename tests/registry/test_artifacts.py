"""Holds the artifact cache: whole or absent, whoever adds, whatever fails."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from interlock.core.errors import ArtifactError, DigestMismatch
from interlock.core.model import artifact_path, digest_of
from interlock.registry import artifacts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights" * 1000)
    (folder / "inner" / "more.bin").write_bytes(b"more")
    return folder


def listed(home: Path) -> list[str]:
    return sorted(os.listdir(home / "artifacts"))


def test_a_folder_is_kept_under_its_digest(tmp_path: Path, source: Path) -> None:
    digest = artifacts.add(tmp_path, source)
    folder = artifacts.verify(tmp_path, digest)
    assert folder == artifact_path(tmp_path, digest) and digest == digest_of(source)
    assert (folder / "inner" / "more.bin").read_bytes() == b"more"
    assert (folder / "model.bin").stat().st_mode & 0o222 == 0
    assert artifacts.add(tmp_path, source) == digest
    assert listed(tmp_path) == [folder.name]
    assert artifacts.size_bytes(folder) == 7004


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left on device"):
        artifacts.add_made(tmp_path, make)
    assert listed(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from interlock.registry import artifacts
def make(folder):
    (folder / "half").write_bytes(b"half")
    os.kill(os.getpid(), 9)
artifacts.add_made(Path(sys.argv[1]), make)
"""


def test_a_killed_copy_is_not_visible_and_is_collected(tmp_path: Path, source: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    (left,) = listed(tmp_path)
    assert left.startswith(".partial-")
    kept = artifacts.add(tmp_path, source)
    assert artifacts.collect_garbage(tmp_path, [kept]) == []  # too young: somebody may be at it
    assert artifacts.collect_garbage(tmp_path, [kept], min_age_s=-1.0) == [left]
    artifacts.verify(tmp_path, kept)
    assert artifacts.collect_garbage(tmp_path, [], min_age_s=-1.0) == [kept.removeprefix("sha256:")]
    assert listed(tmp_path) == []


def test_a_symbolic_link_is_refused(tmp_path: Path, source: Path) -> None:
    (source / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifacts.add(tmp_path, source)
    assert listed(tmp_path) == []


def test_changed_bytes_are_noticed(tmp_path: Path, source: Path) -> None:
    digest = artifacts.add(tmp_path, source)
    path = artifact_path(tmp_path, digest) / "model.bin"
    path.chmod(0o600)
    path.write_bytes(b"other")
    with pytest.raises(DigestMismatch, match=digest):
        artifacts.verify(tmp_path, digest)
    with pytest.raises(DigestMismatch, match="not in"):
        artifacts.verify(tmp_path, "sha256:" + "0" * 64)


def test_many_add_the_same_at_once(tmp_path: Path, source: Path) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(artifacts.add(tmp_path, source))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8 and len(set(digests)) == 1
    assert listed(tmp_path) == [digests[0].removeprefix("sha256:")]
