"""Holds which links in a model's folder are followed: those of a Hugging Face cache, to its blobs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.core.errors import ConfigError, UnknownFormat
from interlock.core.model import digest_of
from interlock.operations.artifact import recognise
from interlock.operations.files import check_folder, copy
from interlock.runtime import huggingface_files

REPOSITORY = "models--someone--small"
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "onnx/model.onnx": b"graph"}


def cached(hub: Path) -> Path:
    """A snapshot in a cache that lies in `hub`, laid out as huggingface_hub does it."""
    repository = hub / REPOSITORY
    snapshot = repository / "snapshots" / "0f1e"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0f1e")
    for name, data in FILES.items():
        blob = repository / "blobs" / f"sha-{name.replace('/', '-')}"
        blob.write_bytes(data)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return snapshot


def test_the_layout_is_that_of_the_library(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub.file_download")
    assert hub.repo_folder_name(repo_id="someone/small", repo_type="model") == REPOSITORY
    snapshot = cached(tmp_path)
    blob = tmp_path / REPOSITORY / "blobs" / "more"
    blob.write_bytes(b"x")
    hub._create_symlink(str(blob), str(snapshot / "more"), new_blob=False)
    assert os.readlink(snapshot / "more") == "../../blobs/more"
    check_folder(snapshot)


def test_a_snapshot_of_a_cache_is_copied_with_what_its_links_lead_to(tmp_path: Path) -> None:
    snapshot, plain = cached(tmp_path / "hub"), tmp_path / "plain"
    for name, data in FILES.items():
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_bytes(data)
    given = recognise(snapshot, trust=False)
    assert given.runtime == "huggingface"
    made = tmp_path / "made"
    made.mkdir()
    given.fill(made)
    assert [path for path in made.rglob("*") if path.is_symlink()] == []
    assert digest_of(made) == digest_of(plain)
    with pytest.raises(ConfigError, match="symbolic link"):  # the cache itself is never served
        digest_of(snapshot)


def test_the_way_to_a_cache_may_be_a_link(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "disk")
    (tmp_path / "model").symlink_to(snapshot)
    check_folder(tmp_path / "model")
    check_folder(tmp_path / "model" / "onnx")


def a_secret(hub: Path) -> Path:
    (hub / "id_rsa").write_text("secret")
    return hub / "id_rsa"


def by_way_of_a_blob(hub: Path) -> Path:
    blob = hub / REPOSITORY / "blobs" / "sha-evil"
    blob.symlink_to(a_secret(hub))
    return blob


def another_repository(hub: Path) -> Path:
    return cached(hub / "other").parents[1] / "blobs" / "sha-config.json"


def a_folder_of_blobs(hub: Path) -> Path:
    folder = hub / REPOSITORY / "blobs" / "inner"
    folder.mkdir()
    (folder / "weights").write_text("x")
    return folder


def a_pipe(hub: Path) -> Path:
    os.mkfifo(hub / REPOSITORY / "blobs" / "pipe")
    return hub / REPOSITORY / "blobs" / "pipe"


TARGETS: dict[str, Callable[[Path], Path]] = {
    "a file outside": a_secret,
    "a file outside, by way of a blob": by_way_of_a_blob,
    "a file of the repository that is no blob": lambda hub: hub / REPOSITORY / "refs" / "main",
    "a blob of another repository": another_repository,
    "a file in a folder of blobs": lambda hub: a_folder_of_blobs(hub) / "weights",
    "a folder": a_folder_of_blobs,
    "nothing": lambda hub: hub / REPOSITORY / "blobs" / "gone",
    "itself": lambda hub: hub / REPOSITORY / "snapshots" / "0f1e" / "odd",
    "a pipe": a_pipe,
}


@pytest.mark.parametrize("name", TARGETS)
def test_any_other_link_is_refused(name: str, tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    check_folder(snapshot)
    (snapshot / "odd").symlink_to(TARGETS[name](tmp_path))
    with pytest.raises(UnknownFormat, match=r"odd is a symbolic link to '.*put the file itself in its place"):
        check_folder(snapshot)


def test_a_folder_that_only_looks_like_a_cache_is_refused(tmp_path: Path) -> None:
    secrets = tmp_path / "home"
    secrets.mkdir()
    a_secret(secrets)
    repository = tmp_path / "hub" / REPOSITORY
    snapshot = repository / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/id_rsa")
    (repository / "blobs").symlink_to(secrets)
    with pytest.raises(UnknownFormat, match=r"config\.json is a symbolic link"):
        check_folder(snapshot)
    other = cached(tmp_path / "hub2").parents[1].rename(tmp_path / "hub2" / "someone")
    with pytest.raises(UnknownFormat, match="is a symbolic link"):
        check_folder(other / "snapshots" / "0f1e")


def test_what_is_left_out_takes_no_room(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    for folder in (source, made):
        folder.mkdir()
    (source / "config.json").write_text("{}")
    with (source / "pytorch_model.bin").open("wb") as file:
        file.truncate(2**43)  # more than there is room for
    copy(source, made, huggingface_files.LEFT_OUT)
    assert [path.name for path in made.iterdir()] == ["config.json"]
