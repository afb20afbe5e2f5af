"""Holds `register`: real models become versions that plain MLflow reads too, and failures leave nothing."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from interlock.core.errors import (
    ArtifactError,
    LedgerError,
    RegistryError,
    UnknownFormat,
    UntrustedArtifact,
)
from interlock.core.model import Placement, artifact_path
from interlock.operations import reference
from interlock.operations.context import Context, open_context, opened
from interlock.operations.register import Registered, register, register_model
from interlock.operations.resolve import resolve
from interlock.registry import artifacts
from interlock.runtime.catalog import runtime_of

pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import

X, Y = load_iris(return_X_y=True)
ROWS = reference.of(X, Y)


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


def nothing_registered(ctx: Context) -> bool:
    return ctx.ledger.versions() == [] and ctx.ledger.events() == [] and ctx.registry.models() == []


def scale(folder: Path, factor: float) -> Path:
    """A file whose registration loads nothing large: y = factor * input, for the rows of iris."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("input", "y"))
    factors = helper.make_tensor("k", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph([helper.make_node("Mul", ["input", "k"], ["y"])], "scale", [x], [y], [factors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / f"times-{factor}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def csv(folder: Path) -> Path:
    path = folder / "iris.csv"
    lines = ["a,b,c,d,kind", *(",".join(map(str, [*row, kind])) for row, kind in zip(X, Y, strict=True))]
    path.write_text("\n".join(lines))
    return path


class Twice(NamedTuple):
    """A home in which one model was registered with reference data and without, and what was said then."""

    ctx: Context
    model: LogisticRegression
    converted: Registered
    kept: Registered
    said: list[str]


@pytest.fixture(scope="module")
def twice(empty_store: Path) -> Iterator[Twice]:
    """For those who only look: each registration loads scikit-learn in a child, which takes seconds."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        shutil.copy(empty_store, folder)
        context = open_context(Path(folder))
        said: list[str] = []
        model = LogisticRegression(max_iter=500).fit(X, Y)
        done = register(context, "iris", model, data=ROWS, progress=said.append, tags={"team": "botany"})
        yield Twice(context, model, done, register(context, "iris", model), said)
        context.close()


def test_a_classifier_becomes_onnx_that_answers_the_same(twice: Twice) -> None:
    ctx, done = twice.ctx, twice.converted
    conversion = done.conversion
    assert conversion is not None and conversion.converted, conversion
    assert conversion.rows >= 1000 and conversion.difference is not None and conversion.difference <= 1e-5
    assert set(conversion.kept_s) == set(conversion.onnx_s) == {1, 32}
    assert all(conversion.onnx_s[rows] < conversion.kept_s[rows] for rows in (1, 32))
    version = done.version
    assert (version.runtime, version.number, version.placement) == ("onnx", "1", Placement.INLINE)
    assert [spec.name for spec in version.signature.inputs] == ["input"]
    assert [spec.name for spec in version.signature.outputs] == ["label", "probabilities"]
    assert done.report.failures == () and len(twice.said) >= 4
    folder = artifacts.verify(ctx.home, version.digest)
    answer = runtime_of("onnx").load(folder, version).predict({"input": X.astype(np.float32)})
    assert answer["label"].tolist() == twice.model.predict(X).tolist()
    np.testing.assert_allclose(answer["probabilities"], twice.model.predict_proba(X), atol=1e-5)
    assert ctx.ledger.version("iris", "1") == version == resolve(ctx, "iris", "1")


def test_without_reference_data_nothing_is_converted(twice: Twice) -> None:
    done = twice.kept
    assert done.conversion is not None and "--data" in done.conversion.reason
    assert (done.version.runtime, done.version.number) == ("sklearn", "2") and done.report.generated
    assert done.version.placement is Placement.EXECUTOR
    assert resolve(twice.ctx, "iris") == done.version == resolve(twice.ctx, "iris", "2")


def test_plain_mlflow_reads_what_was_registered(twice: Twice, tmp_path: Path) -> None:
    code = """
import sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
rows = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
print(mlflow.onnx.load_model("models:/iris/1").graph.input[0].name)
print(mlflow.pyfunc.load_model("models:/iris/1").predict({"input": rows})["label"])
print(mlflow.sklearn.load_model("models:/iris/2").predict(rows))
version = mlflow.MlflowClient().get_model_version("iris", "1")
names = mlflow.models.get_model_info("models:/iris/1").signature.inputs.input_names()
print(version.tags["team"], version.status, names)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, twice.ctx.registry.tracking_uri],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.stdout.split("\n")[:4] == ["input", "[0]", "[0]", "botany READY ['input']"], done.stderr


def test_versions_count_up_and_equal_models_share_an_artifact(ctx: Context, tmp_path: Path) -> None:
    first = register(ctx, "iris", scale(tmp_path, 2))
    second = register(ctx, "iris", scale(tmp_path, 3))
    again = register(ctx, "iris", scale(tmp_path, 2))
    assert [first.number, second.number, again.number] == ["1", "2", "3"]
    assert first.version.digest == again.version.digest != second.version.digest
    ctx.registry.set_alias("iris", "champion", "2")
    assert resolve(ctx, "iris", "@champion") == second.version
    assert resolve(ctx, "iris") == again.version


def test_a_pickle_is_read_with_trust(ctx: Context, tmp_path: Path) -> None:
    """Other files of scikit-learn: tests/runtime/test_sklearn_prepare.py."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(LogisticRegression(max_iter=500).fit(X, Y)))
    with pytest.raises(UntrustedArtifact, match=r"SHA-256 [0-9a-f]{64}.*--trust"):
        register(ctx, "iris", path)
    assert nothing_registered(ctx)
    done = register(ctx, "iris", str(path), data=str(csv(tmp_path)), target="kind", trust=True)
    assert done.version.runtime == "onnx"
    assert os.listdir(artifact_path(ctx.home, done.version.digest)) == ["model.onnx"]


def test_onnx_files_and_python_files(ctx: Context, tmp_path: Path) -> None:
    path = scale(tmp_path, 2)
    assert register(ctx, "file", path, data=ROWS).version.entry == path.name
    assert register(ctx, "object", onnx.load(path)).version.runtime == "onnx"
    source = tmp_path / "twice.py"
    source.write_text(
        "class Twice:\n    max_batch_rows = 16\n"
        "    def predict(self, inputs):\n        return {'y': inputs['input'] * 2}\n"
    )
    done = register(ctx, "twice", source, data=ROWS)
    assert done.version.entry == "twice.py:Twice" and done.version.placement is Placement.EXECUTOR
    assert done.version.capabilities.max_batch_rows == 16
    assert register(ctx, "twice", f"{source}:Twice", data=ROWS).number == "2"


def test_from_python_in_a_home_that_was_not_there(interlock_home: Path) -> None:
    frame = load_iris(as_frame=True).data
    steps: list[str] = []
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = LogisticRegression(max_iter=500).fit(frame, Y)
        done = register_model("iris", model, frame, Y, home=interlock_home, progress=steps.append)
    assert [str(warning.message) for warning in seen if "feature names" in str(warning.message)] == []
    assert list(warnings.filters) == before
    assert steps[0] == "reading the model" and steps[-1] == "logging it into the registry"
    assert done.conversion is not None
    shown = repr(done)
    assert shown.startswith("<Registered iris version 1: onnx, inline, digest ")
    assert done.version.digest[7:19] in shown and shown.endswith(f", {done.conversion.reason}>")
    assert "\n" not in shown and len(shown) < 250
    assert done.version.runtime == "onnx" and done.version.signature.columns == tuple(frame.columns)
    assert oct(interlock_home.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_told_on_a_terminal_only(
    ctx: Context,
    tmp_path: Path,
    is_terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with pytest.raises(UnknownFormat):
        register_model("iris", tmp_path / "nothing.onnx", home=ctx.home)
    assert ("interlock: reading the model" in capsys.readouterr().err) is is_terminal


@pytest.mark.parametrize(
    "stage", ["add", "run_check", "finalize_logged_model", "create_model_version", "put"]
)
def test_a_failure_at_any_stage_leaves_nothing(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = scale(tmp_path, 2)

    def fail(*arguments: object, **options: object) -> None:
        raise LedgerError("planted") if stage == "put" else OSError("planted")

    if stage == "add":
        monkeypatch.setattr(artifacts, "add", fail)
    elif stage in ("run_check", "put"):
        monkeypatch.setattr(f"interlock.operations.register.{stage}", fail)
    else:
        monkeypatch.setattr(ctx.registry.client, stage, fail)
    with pytest.raises((OSError, RegistryError, LedgerError, ArtifactError), match="planted"):
        register(ctx, "iris", path)
    monkeypatch.undo()
    assert nothing_registered(ctx)
    assert register(ctx, "iris", path).number == "1"


# One interpreter for all, since it takes seconds to import MLflow: children of its own are killed.
KILLED = """
import os, sys
from pathlib import Path
import mlflow
import alembic.runtime.migration as m
from interlock.operations import register as module
from interlock.operations.context import open_context
from interlock.registry.mlflow import Registry
path, in_registry, in_ledger, made = map(Path, sys.argv[1:])
kill = lambda *a, **k: os.kill(os.getpid(), 9)
def in_child(act):
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for home, place, name in ((in_registry, Registry, "log_version"), (in_ledger, module, "put")):
    def act():
        setattr(place, name, kill)
        module.register(open_context(home), "line", str(path))
    in_child(act)
step = m.HeadMaintainer.update_to_step
left = [20]
def update(self, *a, **k):
    left[0] -= 1
    if not left[0]:
        kill()
    return step(self, *a, **k)
m.HeadMaintainer.update_to_step = update
for _ in range(2):
    in_child(lambda: Registry(made).models())
"""


class Killed(NamedTuple):
    """Homes in which a process was killed: in the middle of a registration, in the registry and before the
    ledger, and while the registry itself was made, twice. `codes`: how the four processes ended."""

    in_registry: Path
    in_ledger: Path
    made: Path
    codes: list[str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    homes = in_registry, in_ledger, made = [folder / name for name in ("registry", "ledger", "made")]
    for home in homes:
        home.mkdir(mode=0o700)
    for home in (in_registry, in_ledger):
        shutil.copy(empty_store, home)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, *map(str, (scale(folder, 2), *homes))]
    done = subprocess.run(command, timeout=100, check=True, stdout=subprocess.PIPE, text=True)
    return Killed(in_registry, in_ledger, made, done.stdout.split())


def test_a_kill_while_the_registry_is_made_leaves_none_or_a_whole_one(killed: Killed) -> None:
    home = killed.made
    assert killed.codes[2:] == ["-9", "-9"]
    assert not (home / "mlflow.db").exists()
    assert len(list(home.glob(".mlflow.db-*[0-9a-f]"))) == 1, "of the first try nothing is left"
    ctx = open_context(home)
    assert ctx.registry.models() == []
    ctx.close()
    assert not list(home.glob(".mlflow.db-*")), "what the killed left"
    assert (home / "mlflow.db").stat().st_mode & 0o777 == 0o600


def test_a_kill_leaves_no_half_version(killed: Killed) -> None:
    assert killed.codes[:2] == ["-9", "-9"]
    with opened(killed.in_registry) as ctx:
        assert ctx.ledger.versions() == [] and ctx.registry.models() == []
    with opened(killed.in_ledger) as ctx:
        assert ctx.ledger.versions() == []
        version = resolve(ctx, "line")  # the registry has it whole: it is resolved like any other
        assert version.runtime == "onnx" and ctx.ledger.version("line", "1") == version


def test_bytecode_of_a_models_modules_stays_out_of_its_artifact(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would change the digest, and no worker would load the version."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "helper.py").write_text("def twice(x):\n    return x * 2\n")
    (folder / "lazy.py").write_text("ONE = 1\n")
    (folder / "model.py").write_text(
        "from helper import twice\n\n\n"
        "class Model:\n"
        '    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}\n\n'
        "    def predict(self, inputs):\n"
        "        import lazy\n\n"
        '        return {"y": twice(inputs["x"]) * lazy.ONE}\n'
    )
    version = register(ctx, "lazy", folder).version
    artifacts.verify(ctx.home, version.digest)
    assert not list(ctx.home.rglob("*.pyc"))
