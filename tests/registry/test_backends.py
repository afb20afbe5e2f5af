"""The contract of the registry, held by each store that MLflow can have: SQLite, PostgreSQL, and a server."""

import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from interlock.core.errors import LedgerError, ModelNotFound, RegistryError, VersionNotFound
from interlock.core.model import artifact_path
from interlock.operations.context import Context, open_context
from interlock.operations.register import register
from interlock.operations.resolve import resolve
from interlock.registry.mlflow import Registry
from tests.registry.stores import MlflowServer, postgres

pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow]

MODEL = """
class Model:
    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}
    def predict(self, inputs):
        return {"y": inputs["x"] * FACTOR}
"""
REGISTER = """
import sys
from pathlib import Path
from interlock.operations.context import open_context
from interlock.operations.register import register
for line in sys.stdin:
    home, uri, path = line.rstrip("\\n").split("\\t")
    ctx = open_context(Path(home), tracking_uri=uri or None)
    print(register(ctx, "race", Path(path)).number, flush=True)
    ctx.close()
"""


class Backend(NamedTuple):
    """`uri` None: the store of the home folder."""

    home: Path
    uri: str | None

    def open(self) -> Context:
        return open_context(self.home, tracking_uri=self.uri)


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "server"])
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[Backend]:
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield Backend(home, None)
    elif request.param == "postgresql":
        with postgres() as uri:
            yield Backend(home, uri)
    else:
        with MlflowServer(home / "server", empty_store) as server:
            yield Backend(home / "home", server.uri)


@pytest.fixture
def ctx(backend: Backend) -> Iterator[Context]:
    context = backend.open()
    yield context
    context.close()


@pytest.fixture(scope="module")
def registrars() -> "Iterator[list[subprocess.Popen[str]]]":
    """Two processes that register what they are told: for all stores, as each imports MLflow first."""
    command = [sys.executable, "-c", REGISTER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(2)]
    yield started
    for process in started:
        process.communicate(timeout=60)


def a_model(folder: Path, factor: int = 2) -> Path:
    path = folder / f"times_{factor}.py"
    path.write_text(MODEL.replace("FACTOR", str(factor)))
    return path


def test_what_is_registered_is_found_by_number_alias_and_newest(
    ctx: Context, backend: Backend, tmp_path: Path
) -> None:
    done = register(ctx, "twice", a_model(tmp_path), tags={"team": "risk"})
    registry = ctx.registry
    assert done.number == "1" and "twice" in registry.models()
    # What plain MLflow code does.
    second = registry.client.create_model_version("twice", source="s3://bucket/model")
    assert str(second.version) == "2"

    registry.set_alias("twice", "champion", "1")
    registry.set_tag("twice", "2", "note", 'it\'s "ünï"')
    assert registry.aliases("twice") == {"champion": "1"}
    assert [version.number for version in registry.versions("twice")] == ["1", "2"]
    assert registry.resolve("twice").number == "2"
    assert registry.resolve("twice", "2").tags == {"note": 'it\'s "ünï"'}
    champion = registry.resolve("twice", "@champion")
    assert champion == registry.resolve("twice", "1")
    assert (champion.number, champion.aliases) == ("1", ("champion",))
    assert champion.tags["interlock.digest"] == done.version.digest and champion.tags["team"] == "risk"
    registry.set_alias("twice", "champion", "2")
    assert registry.resolve("twice", "@champion").number == "2"

    # Its files, as another home gets them: with nothing in its ledger or its cache.
    folder = tmp_path / "files"
    folder.mkdir()
    registry.download("twice", "1", folder)
    assert {"MLmodel", "times_2.py"} <= {path.name for path in folder.iterdir()}
    other = open_context(tmp_path / "other", tracking_uri=backend.uri or registry.tracking_uri)
    try:
        again = resolve(other, "twice", "1", trust=True)
        assert artifact_path(other.home, again.digest).is_dir()
        assert msgspec.structs.replace(again, profile=done.version.profile) == done.version
    finally:
        other.close()

    registry.remove("twice", "2")
    assert [version.number for version in registry.versions("twice")] == ["1"]
    assert registry.aliases("twice") == {}


@pytest.mark.parametrize(
    ("model", "selector", "error"),
    [
        ("nobody", None, ModelNotFound),
        ("nobody", "1", ModelNotFound),
        ("nobody", "@champion", ModelNotFound),
        ("empty", None, VersionNotFound),
        ("empty", "7", VersionNotFound),
        ("empty", "@champion", VersionNotFound),
        ("empty", "new", VersionNotFound),
    ],
)
def test_what_is_not_there_is_said_so(
    ctx: Context, model: str, selector: str | None, error: type[Exception]
) -> None:
    if model == "empty" and "empty" not in ctx.registry.models():
        ctx.registry.client.create_registered_model("empty")
    with pytest.raises(error, match=f"'{model}'"):
        ctx.registry.resolve(model, selector)


@pytest.mark.parametrize("name", ["two words", "o'hara", 'say "hi"', "größe-模型", "100$ & <more>;", "a,b=c"])
def test_names_come_back_as_they_are(ctx: Context, name: str) -> None:
    registry = ctx.registry
    registry.client.create_registered_model(name)
    for _ in range(2):
        registry.client.create_model_version(name, source="s3://bucket/model")
    registry.set_alias(name, "champion", "1")
    assert name in registry.models()
    assert [(one.model, one.number) for one in registry.versions(name)] == [(name, "1"), (name, "2")]
    assert registry.resolve(name).number == "2" and registry.resolve(name, "@champion").model == name
    with pytest.raises(VersionNotFound):
        registry.resolve(name, "3")


@pytest.mark.parametrize(
    "stage",
    ["log_model_artifacts", "create_registered_model", "create_model_version", "set_terminated", "put"],
)
def test_a_registration_that_fails_half_way_leaves_nothing(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = ctx.registry.models()

    def fail(*arguments: object, **options: object) -> None:
        raise LedgerError("planted") if stage == "put" else OSError("planted")

    place: Any = "interlock.operations.register.put"
    if stage == "put":
        monkeypatch.setattr(place, fail)
    else:
        monkeypatch.setattr(ctx.registry.client, stage, fail)
    with pytest.raises((RegistryError, LedgerError), match="planted"):
        register(ctx, f"half {stage}", a_model(tmp_path))
    monkeypatch.undo()
    assert ctx.registry.models() == before
    assert ctx.ledger.versions(f"half {stage}") == []


def test_two_processes_that_register_at_once_get_two_numbers(
    backend: Backend, registrars: "list[subprocess.Popen[str]]", tmp_path: Path
) -> None:
    for process, factor in zip(registrars, (5, 7), strict=True):
        assert process.stdin is not None
        print(
            backend.home,
            backend.uri or "",
            a_model(tmp_path, factor),
            sep="\t",
            file=process.stdin,
            flush=True,
        )
    answers = [process.stdout.readline() for process in registrars if process.stdout is not None]
    assert sorted(answers) == ["1\n", "2\n"]
    context = backend.open()
    try:
        assert [version.number for version in context.registry.versions("race")] == ["1", "2"]
        assert len({version.digest for version in context.ledger.versions("race")}) == 2
    finally:
        context.close()


def test_nothing_of_the_process_is_left_changed(ctx: Context) -> None:
    before = dict(os.environ)
    level = logging.getLogger("mlflow").level
    assert ctx.registry.models() is not None
    with pytest.raises(ModelNotFound):
        ctx.registry.resolve("nobody")
    assert dict(os.environ) == before and logging.getLogger("mlflow").level == level


def test_a_password_is_shown_nowhere_and_what_is_wrong_is_said_at_once(
    backend: Backend, tmp_path: Path
) -> None:
    """Of a database MLflow itself would try ten times, for a hundred seconds."""
    if backend.uri is None:
        pytest.skip("the store of the home folder has no password")
    uri = backend.uri.replace("/mlflow?", "/nowhere?")
    if uri == backend.uri:
        uri = "http://ann:pg%2Fs3cr3t@127.0.0.1:1"
    started_s = time.monotonic()
    with pytest.raises(RegistryError) as refused:
        Registry(tmp_path, uri).models()
    assert time.monotonic() - started_s < 20
    told = "".join(traceback.format_exception(refused.value))
    assert "s3cr3t" not in told and ("nowhere" in told or "Connection refused" in told)
