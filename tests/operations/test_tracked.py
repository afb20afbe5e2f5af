"""Holds what is read of DVC's files. They are as DVC 3.67 wrote them for these very data; the one of DVC 2 as
it documents them."""

import hashlib
from pathlib import Path

import pytest

from interlock.operations.tracked import tracked
from tests.operations.repositories import commit, repository

DATA = b"a,b\n1,2\n"
MD5 = hashlib.md5(DATA).hexdigest()
POINTER = f"outs:\n- md5: {MD5}\n  size: 8\n  hash: md5\n  path: rows.csv\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of git and DVC's, with the data that git ignores."""
    folder = tmp_path / "p"
    repository(folder, **{".gitignore": "/rows.csv\n", "rows.csv.dvc": POINTER})
    (folder / ".dvc").mkdir()
    (folder / "rows.csv").write_bytes(DATA)
    return folder


def test_a_file_that_is_the_one_that_was_added(project: Path) -> None:
    found = tracked(project / "rows.csv")
    assert found is not None
    assert (found.md5, found.matches, found.dirty) == (MD5, True, False)
    assert found.file == str(project / "rows.csv.dvc") and found.path == str(project / "rows.csv")
    assert found.commit == commit_of(project) and found.warning == ""


def commit_of(folder: Path) -> str:
    from interlock.operations.revision import revision

    code = revision(folder)
    assert code is not None
    return code.commit


def test_other_data_are_a_warning(project: Path) -> None:
    (project / "rows.csv").write_bytes(DATA + b"3,4\n")
    found = tracked(project / "rows.csv")
    assert found is not None and found.matches is False
    assert "the data are not those that" in found.warning and MD5 in found.warning


def test_a_pointer_that_is_not_committed_is_a_warning(project: Path) -> None:
    (project / "rows.csv").write_bytes(b"x")
    (project / "rows.csv.dvc").write_text(POINTER.replace(MD5, hashlib.md5(b"x").hexdigest()))
    found = tracked(project / "rows.csv")
    assert found is not None and (found.matches, found.dirty) == (True, True)
    assert "is not committed as it is" in found.warning
    commit(project)
    again = tracked(project / "rows.csv")
    assert again is not None and again.warning == "" and again.commit != found.commit


def test_a_file_in_a_tracked_folder_is_told_by_the_folder(project: Path) -> None:
    (project / "d" / "deep").mkdir(parents=True)
    (project / "d" / "deep" / "x.csv").write_bytes(DATA)
    outs = "outs:\n- md5: 7e4a.dir\n  size: 8\n  nfiles: 1\n  hash: md5\n  path: d\n"
    (project / "d.dvc").write_text(outs)
    found = tracked(project / "d" / "deep" / "x.csv")
    assert found is not None and (found.md5, found.matches) == ("7e4a.dir", None)
    assert found.path == str(project / "d")


def test_the_output_of_a_stage(project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "out.csv").write_bytes(DATA)
    stage = "stages:\n  make:\n    wdir: sub\n    cmd: python make.py\n    outs:\n    - out.csv:\n        cache: false\n"  # noqa: E501
    (project / "dvc.yaml").write_text(stage)
    found = tracked(project / "sub" / "out.csv")
    assert found is not None and (found.md5, found.matches) == (None, None)
    assert "no run of the stage has recorded them" in found.warning
    (project / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  make:\n    cmd: python make.py\n    outs:\n    - path: out.csv\n"
        f"      hash: md5\n      md5: {MD5}\n      size: 8\n"
    )
    found = tracked(project / "sub" / "out.csv")
    assert found is not None and (found.md5, found.matches) == (MD5, True)
    assert found.file == str(project / "dvc.lock")


def test_dvc_2_counts_the_line_ends_of_texts_as_those_of_unix(project: Path) -> None:
    (project / "rows.csv").write_bytes(DATA.replace(b"\n", b"\r\n"))
    (project / "rows.csv.dvc").write_text(POINTER.replace("  hash: md5\n", ""))
    found = tracked(project / "rows.csv")
    assert found is not None and found.matches is True
    (project / "rows.csv.dvc").write_text(POINTER)
    found = tracked(project / "rows.csv")
    assert found is not None and found.matches is False


@pytest.mark.parametrize("text", ["", "[", "outs: 7", "outs:\n- {}\n- 3", "- 1", "outs:\n- path: other.csv"])
def test_files_that_say_nothing_of_it_are_none(project: Path, text: str) -> None:
    (project / "rows.csv.dvc").write_text(text)
    (project / "dvc.lock").write_text(text)
    (project / "dvc.yaml").write_text(text)
    assert tracked(project / "rows.csv") is None


def test_nothing_above_the_root_of_a_project_is_asked(project: Path) -> None:
    inner = project / "inner"
    repository(inner)
    (inner / "rows.csv").write_bytes(DATA)
    outs = f"outs:\n- md5: {MD5}\n  hash: md5\n  path: inner/rows.csv\n"
    (project / "dvc.lock").write_text(
        f"stages:\n  a:\n    {outs}".replace("\n- ", "\n    - ").replace("\n  ", "\n      ")
    )
    assert tracked(inner / "rows.csv") is None


def test_a_file_that_nobody_tracks(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(DATA)
    assert tracked(tmp_path / "x.csv") is None
