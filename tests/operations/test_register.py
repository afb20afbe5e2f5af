"""Holds `register`: real models become versions that plain MLflow reads too, and failures leave nothing."""

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB

from interlock.core.errors import (
    ArtifactError,
    CheckFailed,
    ConfigError,
    InterlockError,
    LedgerError,
    LoadFailed,
    RegistryError,
    UnknownFormat,
    UntrustedArtifact,
)
from interlock.core.model import Placement, artifact_path
from interlock.operations import reference
from interlock.operations.context import Context, open_context
from interlock.operations.register import register, register_model
from interlock.operations.resolve import resolve
from interlock.registry import artifacts
from interlock.runtime.catalog import runtime_of

X, Y = load_iris(return_X_y=True)
ROWS = reference.of(X, Y)


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


def nothing_registered(ctx: Context) -> bool:
    return ctx.ledger.versions() == [] and ctx.ledger.events() == [] and ctx.registry.models() == []


def csv(folder: Path) -> Path:
    path = folder / "iris.csv"
    lines = ["a,b,c,d,kind", *(",".join(map(str, [*row, kind])) for row, kind in zip(X, Y, strict=True))]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_classifier_becomes_onnx_that_answers_the_same(ctx: Context) -> None:
    said: list[str] = []
    model = LogisticRegression(max_iter=500).fit(X, Y)
    done = register(ctx, "iris", model, data=ROWS, progress=said.append)
    conversion = done.conversion
    assert conversion is not None and conversion.converted, conversion
    assert conversion.rows >= 1000 and conversion.difference is not None and conversion.difference <= 1e-5
    assert set(conversion.kept_s) == set(conversion.onnx_s) == {1, 32}
    assert all(conversion.onnx_s[rows] < conversion.kept_s[rows] for rows in (1, 32))
    version = done.version
    assert (version.runtime, version.number, version.placement) == ("onnx", "1", Placement.INLINE)
    assert [spec.name for spec in version.signature.inputs] == ["input"]
    assert [spec.name for spec in version.signature.outputs] == ["label", "probabilities"]
    assert done.report.failures == () and len(said) >= 4
    folder = artifacts.verify(ctx.home, version.digest)
    answer = runtime_of("onnx").load(folder, version).predict({"input": X.astype(np.float32)})
    assert answer["label"].tolist() == model.predict(X).tolist()
    np.testing.assert_allclose(answer["probabilities"], model.predict_proba(X), atol=1e-5)
    assert ctx.ledger.version("iris", "1") == version == resolve(ctx, "iris") == resolve(ctx, "iris", "1")


@pytest.mark.slow
def test_versions_count_up_and_equal_models_share_an_artifact(ctx: Context) -> None:
    first = register(ctx, "iris", LinearRegression().fit(X, Y), data=ROWS)
    second = register(ctx, "iris", GradientBoostingClassifier(n_estimators=3).fit(X, Y), data=ROWS)
    again = register(ctx, "iris", LinearRegression().fit(X, Y), data=ROWS)
    assert [first.number, second.number, again.number] == ["1", "2", "3"]
    assert first.version.digest == again.version.digest != second.version.digest
    ctx.registry.set_alias("iris", "champion", "2")
    assert resolve(ctx, "iris", "@champion") == second.version
    assert resolve(ctx, "iris") == again.version


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (GaussianNB(), "differs in probabilities"),
        (KMeans(3, random_state=0, n_init=1), "64-bit floats"),
        (HistGradientBoostingClassifier(max_iter=3), "cannot be converted"),
    ],
    ids=["another answer", "float64 only", "no converter"],
)
def test_what_onnx_does_not_answer_alike_is_kept(ctx: Context, estimator: Any, said: str) -> None:
    done = register(ctx, "iris", estimator.fit(X, Y), data=ROWS)
    assert done.conversion is not None and not done.conversion.converted and said in done.conversion.reason
    version = done.version
    assert (version.runtime, version.placement) == ("sklearn", Placement.EXECUTOR)
    loaded = runtime_of("sklearn").load(artifact_path(ctx.home, version.digest), version)
    answer = loaded.predict(
        {"input": X.astype(np.float32 if "FP32" in str(version.signature.inputs) else np.float64)}
    )
    assert next(iter(answer.values())).ravel().tolist() == estimator.predict(X).tolist()


@pytest.mark.slow
def test_without_reference_data_nothing_is_converted(ctx: Context) -> None:
    done = register(ctx, "iris", LogisticRegression(max_iter=500).fit(X, Y))
    assert done.conversion is not None and "--data" in done.conversion.reason
    assert done.version.runtime == "sklearn" and done.report.generated


@pytest.mark.slow
def test_plain_mlflow_reads_what_was_registered(ctx: Context, tmp_path: Path) -> None:
    register(ctx, "iris", LogisticRegression(max_iter=500).fit(X, Y), data=ROWS, tags={"team": "botany"})
    register(ctx, "iris", LogisticRegression(max_iter=500).fit(X, Y))
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
        [sys.executable, "-W", "ignore", "-c", code, ctx.registry.tracking_uri],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.stdout.split("\n")[:4] == ["input", "[0]", "[0]", "botany READY ['input']"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".skops", ".pkl", ".joblib"])
def test_files_are_read_with_trust_where_it_takes_trust(ctx: Context, tmp_path: Path, suffix: str) -> None:
    import joblib
    import skops.io  # takes seconds: it imports every module of scikit-learn

    path, model = tmp_path / f"model{suffix}", LogisticRegression(max_iter=500).fit(X, Y)
    write = {".skops": skops.io.dump, ".joblib": joblib.dump}.get(suffix)
    if write is None:
        path.write_bytes(pickle.dumps(model))
    else:
        write(model, path)
    if suffix != ".skops":
        with pytest.raises(UntrustedArtifact, match=r"SHA-256 [0-9a-f]{64}.*--trust"):
            register(ctx, "iris", path)
        assert nothing_registered(ctx)
    done = register(ctx, "iris", str(path), data=str(csv(tmp_path)), target="kind", trust=suffix != ".skops")
    assert done.version.runtime == "onnx"
    assert os.listdir(artifact_path(ctx.home, done.version.digest)) == ["model.onnx"]


@pytest.mark.slow
def test_types_of_unknown_packages_need_trust(ctx: Context, tmp_path: Path) -> None:
    package = tmp_path / "strange.py"
    package.write_text(
        "from sklearn.linear_model import LinearRegression\nclass Odd(LinearRegression):\n    pass\n"
    )
    code = (
        "import sys, skops.io, numpy as np; from strange import Odd; "
        "skops.io.dump(Odd().fit(np.eye(3), [0, 1, 2]), sys.argv[1])"
    )
    path = tmp_path / "odd.skops"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=tmp_path, check=True, timeout=60)
    with pytest.raises(UntrustedArtifact, match=r"strange\.Odd"):
        register(ctx, "odd", path)
    with pytest.raises(LoadFailed, match="strange"):
        register(ctx, "odd", path, trust=True)  # vouched for, and yet not installed here
    assert nothing_registered(ctx)


@pytest.mark.slow
def test_onnx_files_and_python_files(ctx: Context, tmp_path: Path) -> None:
    from skl2onnx import to_onnx

    graph = to_onnx(LinearRegression().fit(X, Y), X[:1].astype(np.float32))
    (tmp_path / "m.onnx").write_bytes(graph.SerializeToString())
    assert register(ctx, "file", tmp_path / "m.onnx", data=ROWS).version.entry == "m.onnx"
    assert register(ctx, "object", graph).version.runtime == "onnx"
    source = tmp_path / "twice.py"
    source.write_text(
        "class Twice:\n    max_batch_rows = 16\n"
        "    def predict(self, inputs):\n        return {'y': inputs['input'] * 2}\n"
    )
    done = register(ctx, "twice", source, data=ROWS)
    assert done.version.entry == "twice.py:Twice" and done.version.placement is Placement.EXECUTOR
    assert done.version.capabilities.max_batch_rows == 16
    assert register(ctx, "twice", f"{source}:Twice", data=ROWS).number == "2"


@pytest.mark.slow
def test_from_python(interlock_home: Path) -> None:
    steps: list[str] = []
    model = LogisticRegression(max_iter=500).fit(X, Y)
    done = register_model("iris", model, X, Y, home=interlock_home, progress=steps.append)
    assert steps[0] == "reading the model" and steps[-1] == "logging it into the registry"
    assert done.conversion is not None
    shown = repr(done)
    assert shown.startswith("<Registered iris version 1: onnx, inline, digest ")
    assert done.version.digest[7:19] in shown and shown.endswith(f", {done.conversion.reason}>")
    assert "\n" not in shown and len(shown) < 250
    assert done.version.runtime == "onnx"
    assert oct(interlock_home.stat().st_mode & 0o777) == "0o700"


@pytest.mark.slow
def test_a_model_fitted_on_a_data_frame_registers_without_a_warning(ctx: Context) -> None:
    frame = load_iris(as_frame=True).data
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        register_model("iris", LogisticRegression(max_iter=500).fit(frame, Y), frame, Y, home=ctx.home)
    assert [str(warning.message) for warning in seen if "feature names" in str(warning.message)] == []
    assert list(warnings.filters) == before


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


BAD: dict[str, Any] = {
    "no such file": ("absent.onnx", {}, UnknownFormat, "does not exist"),
    "an object": (object(), {}, UnknownFormat, "type object"),
    "a text file": ("notes.txt", {}, UnknownFormat, "no runtime reads .txt"),
    "no skops": ("bad.skops", {}, LoadFailed, "not a skops file"),
    "no graph": ("bad.onnx", {}, LoadFailed, "cannot load"),
    "not fitted": (LogisticRegression(), {}, InterlockError, "fitted"),
    "two classes": ("two.py", {}, UnknownFormat, "name one"),
    "no Python": ("bad.py", {}, LoadFailed, "not Python"),
    "an empty folder": ("folder", {}, UnknownFormat, "exactly one"),
    "it crashes": ("crash.py", {}, CheckFailed, "exit code 3"),
    "no such target": (LogisticRegression().fit(X, Y), {"target": "nope"}, ConfigError, "'nope'"),
    "data of another width": (LinearRegression().fit(X[:, :2], Y), {}, InterlockError, "features|shape"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_registered_leaves_nothing(ctx: Context, tmp_path: Path, name: str) -> None:
    for file in ("notes.txt", "bad.skops", "bad.onnx"):
        (tmp_path / file).write_text("nothing that a model would be")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.py").write_text("class (")
    body = "    def predict(self, inputs):\n        return {}\n"
    (tmp_path / "two.py").write_text(f"class A:\n{body}class B:\n{body}")
    (tmp_path / "crash.py").write_text(
        f"import os\nclass A:\n    def load(self, f):\n        os._exit(3)\n{body}"
    )
    artifact, options, kind, said = BAD[name]
    if isinstance(artifact, str):
        artifact = tmp_path / artifact
    with pytest.raises(kind, match=said):
        register(ctx, "iris", artifact, data=csv(tmp_path), **{"target": "kind", **options})
    assert nothing_registered(ctx)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["add", "run_check", "finalize_logged_model", "create_model_version", "put"]
)
def test_a_failure_at_any_stage_leaves_nothing(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise LedgerError("planted") if stage == "put" else OSError("planted")

    if stage == "add":
        monkeypatch.setattr(artifacts, "add", fail)
    elif stage in ("run_check", "put"):
        monkeypatch.setattr(f"interlock.operations.register.{stage}", fail)
    else:
        monkeypatch.setattr(ctx.registry.client, stage, fail)
    with pytest.raises((OSError, RegistryError, LedgerError, ArtifactError), match="planted"):
        register(ctx, "iris", LinearRegression().fit(X, Y), data=ROWS)
    monkeypatch.undo()
    assert nothing_registered(ctx)
    assert register(ctx, "iris", LinearRegression().fit(X, Y), data=ROWS).number == "1"


CUT_OFF = """
import sys, os, sqlite3
from pathlib import Path
from interlock.registry.mlflow import Registry
import alembic.runtime.migration as m
step = m.HeadMaintainer.update_to_step
left = [20]
def update(self, *a, **k):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
    return step(self, *a, **k)
m.HeadMaintainer.update_to_step = update
Registry(Path(sys.argv[1])).models()
"""


@pytest.mark.slow
def test_a_kill_while_the_registry_is_made_leaves_none_or_a_whole_one(interlock_home: Path) -> None:
    interlock_home.mkdir(exist_ok=True)
    for _ in range(2):
        command = [sys.executable, "-c", CUT_OFF, str(interlock_home)]
        assert subprocess.run(command, timeout=100, check=False).returncode == -9
    assert not (interlock_home / "mlflow.db").exists()
    assert len(list(interlock_home.glob(".mlflow.db-*[0-9a-f]"))) == 1, "of the first try nothing is left"
    ctx = open_context(interlock_home)
    assert ctx.registry.models() == []
    ctx.close()
    assert not list(interlock_home.glob(".mlflow.db-*")), "what the killed left"
    assert (interlock_home / "mlflow.db").stat().st_mode & 0o777 == 0o600


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from sklearn.linear_model import LinearRegression
from interlock.operations import register as module
from interlock.operations.context import open_context
from interlock.registry.mlflow import Registry
kill = lambda *a, **k: os.kill(os.getpid(), 9)
if sys.argv[2] == "registry":
    Registry.log_version = kill
else:
    module.put = kill
X = np.random.default_rng(0).normal(size=(50, 3))
ctx = open_context(Path(sys.argv[1]))
module.register(ctx, "line", LinearRegression().fit(X, X[:, 0]), data=module.data_of.of(X))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["registry", "ledger"])
def test_a_kill_leaves_no_half_version(home_with_store: Path, stage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(home_with_store), stage], timeout=100, check=False
    )
    assert done.returncode == -9
    ctx = open_context(home_with_store)
    assert ctx.ledger.versions() == []
    if stage == "registry":
        assert ctx.registry.models() == []
    else:  # the registry has it whole: it is resolved like any other
        version = resolve(ctx, "line")
        assert version.runtime == "onnx" and ctx.ledger.version("line", "1") == version
    ctx.close()


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
