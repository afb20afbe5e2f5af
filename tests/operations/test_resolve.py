"""Holds `resolve`: versions that plain MLflow code registered are served like our own, by number or alias."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interlock.core.errors import (
    ModelNotFound,
    RegistryError,
    UnknownFormat,
    UntrustedArtifact,
    VersionNotFound,
)
from interlock.core.model import Placement
from interlock.core.table import conform
from interlock.operations.context import Context, open_context
from interlock.operations.resolve import resolve
from interlock.registry import artifacts
from interlock.runtime.catalog import runtime_of

# Plain MLflow writes a store for them, which takes it ten seconds.
pytestmark = pytest.mark.slow

PLAIN = """
import sys
import mlflow, numpy as np
from mlflow.models import infer_signature
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
mlflow.set_tracking_uri(sys.argv[1])
mlflow.create_experiment("plain", artifact_location="file://" + sys.argv[2])
mlflow.set_experiment("plain")
X, y = load_iris(return_X_y=True)
model = LogisticRegression(max_iter=500).fit(X, y)
options = dict(registered_model_name="iris", pip_requirements=["scikit-learn"])
mlflow.sklearn.log_model(model, name="model", signature=infer_signature(X, model.predict(X)), **options)
graph = to_onnx(model, X[:1].astype(np.float32), options={"zipmap": False})
mlflow.onnx.log_model(graph, name="model", **options)
mlflow.sklearn.log_model(model, name="model", serialization_format="cloudpickle", **options)
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
place = np.where(X[:, 1] > 3, "wood", "marsh")
frame = pd.DataFrame({"length": X[:, 0], "count": np.arange(150) % 3, "place": place})
texts = OneHotEncoder(handle_unknown="ignore")
kinds = ColumnTransformer([("t", texts, ["place", "count"])], remainder="passthrough")
model = make_pipeline(kinds, LogisticRegression(max_iter=500)).fit(frame, y)
signature = infer_signature(frame, model.predict(frame))
mlflow.sklearn.log_model(model, name="model", signature=signature, registered_model_name="table",
                         pip_requirements=["scikit-learn"])
frame.assign(label=model.predict(frame)).to_csv(sys.argv[2] + ".csv", index=False)
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
mlflow.pyfunc.log_model(name="model", python_model=Echo(), **options)
client = mlflow.MlflowClient()
client.set_registered_model_alias("iris", "champion", "2")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/tracking.db"
    shutil.copy(empty_store, folder / "tracking.db")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, uri, str(folder / "artifacts")],
        cwd=folder,
        check=True,
        timeout=110,
        capture_output=True,
    )
    return uri


@pytest.fixture
def ctx(interlock_home: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    context = open_context(interlock_home)
    yield context
    context.close()


def test_a_plain_pipeline_on_a_table_gets_its_data_frame(ctx: Context) -> None:
    version = resolve(ctx, "table")
    assert version.runtime == "sklearn" and version.signature.columns == ("length", "count", "place")
    assert [spec.datatype for spec in version.signature.inputs] == ["FP64", "INT64", "BYTES"]
    frame = pd.read_csv(Path(ctx.registry.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts.csv")
    loaded = runtime_of("sklearn").load(artifacts.verify(ctx.home, version.digest), version)
    sent = conform(version.signature, {name: frame[name].to_numpy() for name in version.signature.columns})
    assert loaded.predict(sent)["label"].tolist() == frame["label"].tolist()


def test_a_plain_sklearn_version_is_taken_in(ctx: Context) -> None:
    version = resolve(ctx, "iris", "1")
    assert (version.runtime, version.entry, version.number) == ("sklearn", "model.skops", "1")
    assert version.placement is Placement.EXECUTOR
    assert version.signature.inputs[0].datatype == "FP64"  # what its MLflow signature declares
    loaded = runtime_of("sklearn").load(artifacts.verify(ctx.home, version.digest), version)
    assert loaded.predict({"input": np.array([[5.1, 3.5, 1.4, 0.2]])})["label"].tolist() == [0]
    assert ctx.ledger.version("iris", "1") == version


def test_a_plain_onnx_version_is_taken_in_by_its_alias(ctx: Context, store: str) -> None:
    version = resolve(ctx, "iris", "@champion")
    assert (version.runtime, version.number, version.placement) == ("onnx", "2", Placement.INLINE)
    assert ctx.registry.tracking_uri == store and not (ctx.home / "mlflow.db").exists()
    assert resolve(ctx, "iris", "2") == version
    artifacts.collect_garbage(ctx.home, [], min_age_s=-1.0)
    assert resolve(ctx, "iris", "2") == version  # the cache lost it: downloaded anew, the record stays
    artifacts.verify(ctx.home, version.digest)


def test_a_recorded_version_needs_no_registry(ctx: Context, tmp_path: Path) -> None:
    version = resolve(ctx, "iris", "2")
    (tmp_path / "file").write_text("no folder")
    away = open_context(ctx.home, tracking_uri=f"sqlite:///{tmp_path}/file/store.db")
    assert resolve(away, "iris", "2") == version
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI"):
        resolve(away, "iris", "1")
    away.close()


def test_pickles_are_refused_unless_trusted(ctx: Context) -> None:
    with pytest.raises(UntrustedArtifact, match="model.pkl is a pickle"):
        resolve(ctx, "iris", "3")
    assert ctx.ledger.versions() == []
    version = resolve(ctx, "iris", "3", trust=True)
    assert len(version.options["trusted_sha256"]) == 64
    loaded = runtime_of("sklearn").load(artifacts.verify(ctx.home, version.digest), version)
    assert loaded.predict({"input": np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)})["label"].tolist() == [0]


def test_other_flavors_are_refused_with_a_remedy(ctx: Context) -> None:
    with pytest.raises(UnknownFormat, match=r"python_function.*convert it to ONNX"):
        resolve(ctx, "iris")  # the newest is version 4
    assert ctx.ledger.versions() == []


def test_unknown_names(ctx: Context) -> None:
    with pytest.raises(ModelNotFound, match="'nobody'"):
        resolve(ctx, "nobody")
    with pytest.raises(VersionNotFound, match="'99'"):
        resolve(ctx, "iris", "99")
    with pytest.raises(VersionNotFound, match="'@nope'"):
        resolve(ctx, "iris", "@nope")
    with pytest.raises(VersionNotFound, match="want a number or an @alias"):
        resolve(ctx, "iris", "champion")


def test_the_registry_lists_what_there_is(ctx: Context) -> None:
    assert ctx.registry.models() == ["iris", "table"]
    assert [version.number for version in ctx.registry.versions("iris")] == ["1", "2", "3", "4"]
    assert ctx.registry.versions("iris")[1].aliases == ("champion",)
    assert ctx.registry.aliases("iris") == {"champion": "2"}
    ctx.registry.set_tag("iris", "2", "checked", "yes")
    assert ctx.registry.resolve("iris", "2").tags["checked"] == "yes"
