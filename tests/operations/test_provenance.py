"""Holds what is recorded of a version: read back by MLflow's client, from the ledger, and in another home."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from interlock.core.errors import ConfigError
from interlock.core.model import Signature, TensorSpec, Version, artifact_path
from interlock.operations import provenance, reference
from interlock.operations.context import Context, open_context
from interlock.operations.description import describe
from interlock.operations.difference import difference
from interlock.operations.register import Registered, register
from interlock.operations.resolve import resolve
from interlock.registry.mlmodel import packed
from tests.operations.repositories import repository

pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import

X, Y = load_iris(return_X_y=True)
ROWS = reference.of({"input": X.astype(np.float32)}, Y)


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


@pytest.fixture
def tracking(ctx: Context) -> Iterator[str]:
    """What a training script does first; MLflow's global state is put back."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(ctx.registry.tracking_uri)
    yield ctx.registry.tracking_uri
    mlflow.set_tracking_uri(before)


def npz(folder: Path) -> Path:
    path = folder / "iris.npz"
    np.savez(path, input=X.astype(np.float32), kind=Y)
    return path


def test_a_training_run_gets_a_child_that_mlflow_reads(
    ctx: Context, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository(tmp_path / "code")
    monkeypatch.chdir(tmp_path / "code")
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(tmp_path / "code" / "train.py"), raising=False
    )
    model = LogisticRegression(max_iter=500).fit(X, Y)
    with mlflow.start_run() as training:
        done = register(ctx, "iris", model, data=npz(tmp_path), target="kind")
        still = mlflow.active_run()
        assert still is not None and still.info.run_id == training.info.run_id
    assert mlflow.get_tracking_uri() == tracking
    client: Any = mlflow.MlflowClient(tracking, tracking)
    version = client.get_model_version("iris", "1")
    run = client.get_run(version.run_id)
    parent = training.info.run_id
    children = client.search_runs([training.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert [child.info.run_id for child in children] == [run.info.run_id]
    assert run.info.status == "FINISHED"
    found = run.data.metrics
    assert found["reference_accuracy"] == pytest.approx(model.score(X, Y))
    assert {"reference_log_loss", "reference_roc_auc", "reference_brier", "load_s"} <= set(found)
    assert {f"batch_{rows}_{unit}" for rows in (1, 8, 32, 128) for unit in ("s", "bytes")} <= set(found)
    assert found["batch_128_bytes"] >= found["resident_bytes"] >= 0  # 0: it fits in pages that were free
    assert run.data.params["placement"] == done.version.placement.value
    assert run.data.params["capability.batchable"] == "true"
    assert run.data.tags["mlflow.source.git.commit"] == commit
    assert run.data.tags["mlflow.source.git.branch"] == "train"
    (entry,) = run.inputs.dataset_inputs
    digest = done.provenance.dataset.digest  # type: ignore[union-attr]
    assert digest == f"sha256:{sha256(tmp_path / 'iris.npz')}"
    assert entry.dataset.digest == digest.removeprefix("sha256:")[:36]
    assert json.loads(entry.dataset.profile)["digest"] == digest
    assert mlflow.data.get_source(entry).load() == str(tmp_path / "iris.npz")
    assert [column["name"] for column in json.loads(entry.dataset.schema)["mlflow_colspec"]] == [
        "input",
        "kind",
    ]
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "reference")]
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    measured = {metric.key: metric for metric in logged.metrics}
    assert measured["reference_accuracy"].dataset_digest == entry.dataset.digest
    assert logged.params["runtime"] == done.version.runtime
    info = mlflow.models.get_model_info("models:/iris/1")
    assert info.signature.inputs.input_names() == ["input"]
    folder = Path(mlflow.artifacts.download_artifacts("models:/iris/1/interlock", tracking_uri=tracking))
    assert {path.name for path in folder.iterdir()} == {
        "provenance.json", "checks.json", "profile.json", "environment.json"
    }  # fmt: skip
    assert json.loads((folder / "environment.json").read_bytes())["packages"]["numpy"] == np.__version__
    assert Path(version.source.removeprefix("file://")).is_relative_to(ctx.home)
    # The ledger says the same without MLflow, and so does a home that has never seen it.
    kept = ctx.ledger.provenance("iris", "1")
    assert kept == done.provenance and kept is not None
    assert kept.parent is not None and (kept.parent.run_id, kept.parent.tracking_uri) == (parent, None)
    assert kept.code is not None and (kept.code.commit, kept.code.dirty) == (commit, False)
    other = open_context(tmp_path / "other", tracking_uri=tracking)
    try:
        assert describe(other, "iris", "1").provenance == kept
        assert resolve(other, "iris", "1").digest == done.version.digest
        assert other.ledger.provenance("iris", "1") == kept
    finally:
        other.close()


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


LINE = LinearRegression().fit(X, Y)


def registered(ctx: Context, **options: Any) -> Registered:
    """`LINE` as a graph, whose registration loads nothing of scikit-learn."""
    return register(ctx, "price", line(), **options)


def line() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])
    slopes = helper.make_tensor("slopes", TensorProto.FLOAT, [4, 1], LINE.coef_)
    at_zero = helper.make_tensor("at_zero", TensorProto.FLOAT, [1], [LINE.intercept_])
    node = helper.make_node("Gemm", ["input", "slopes", "at_zero"], ["y"])
    graph = helper.make_graph([node], "line", [x], [y], [slopes, at_zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_run_of_another_store_is_noted_and_a_slip_is_refused_before_any_work(
    ctx: Context, tmp_path: Path, tracking: str
) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="no run 'nonsense' in the registry's store"):
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        registered(ctx, run="nonsense", progress=said.append)
    assert said == [] and ctx.registry.models() == []
    mlflow.set_tracking_uri(tracking)
    run_id = mlflow.MlflowClient(tracking).create_run("0").info.run_id
    mine = registered(ctx, run=run_id)
    assert mine.provenance is not None and mine.provenance.parent is not None
    assert (mine.provenance.parent.run_id, mine.provenance.parent.tracking_uri) == (run_id, None)
    elsewhere = f"sqlite:///{tmp_path}/theirs.db"
    (tmp_path / "theirs.db").write_bytes((ctx.home / "mlflow.db").read_bytes())
    mlflow.set_tracking_uri(elsewhere)
    with mlflow.start_run() as training:
        theirs = registered(ctx)
    assert theirs.provenance is not None and theirs.provenance.parent is not None
    parent = theirs.provenance.parent
    assert (parent.run_id, parent.tracking_uri) == (training.info.run_id, elsewhere)
    run = describe(ctx, "price", "2").run
    assert run is not None and "mlflow.parentRunId" not in run.tags
    assert run.tags["interlock.parent.run_id"] == training.info.run_id
    assert run.tags["interlock.parent.tracking_uri"] == elsewhere


def test_no_environment_variable_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct horse")
    found = provenance.environment()
    assert b"correct horse" not in msgspec.json.encode(found)
    assert found.packages["numpy"] == np.__version__
    assert list(found.packages) == sorted(found.packages, key=str.lower)


def test_arrays_have_the_digest_of_their_values() -> None:
    texts = np.array([b"a", b"bc"], object)
    digests = {
        provenance.digest_of_arrays(inputs, target)
        for inputs, target in [
            ({"x": X}, None), ({"x": X}, Y), ({"y": X}, None), ({"x": X.astype(np.float32)}, None),
            ({"x": X[:149]}, None), ({"x": texts}, None), ({"x": texts[::-1]}, None),
            ({"x": np.array([b"ab", b"c"], object)}, None),
        ]
    }  # fmt: skip
    assert len(digests) == 8
    assert provenance.digest_of_arrays({"x": np.asfortranarray(X)}, Y) in digests


def test_a_table_has_names_and_types_in_mlflow(tmp_path: Path, ctx: Context) -> None:
    """One tensor of columns, and an input for each: a client of MLflow reads the columns of both."""
    import pandas

    kinds = TensorProto.FLOAT, TensorProto.INT64
    whole = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    each = [helper.make_tensor_value_info(n, k, [None, 1]) for n, k in zip("ab", kinds, strict=True)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    sums = helper.make_node("ReduceSum", ["x", "axis"], ["y"])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    y = (TensorSpec("y", "FP32", (-1, 1)),)
    cases = {
        "whole": (
            helper.make_graph([sums], "g", [whole], [out], [axis]),
            Signature((TensorSpec("x", "FP32", (-1, 2)),), y, 0, ("a", "b")),
            ["double", "double"],
        ),
        "each": (
            helper.make_graph(nodes, "g", each, [out]),
            Signature((TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "INT64", (-1, 1))), y, 0, ("a", "b")),  # noqa: E501
            ["double", "long"],
        ),
    }  # fmt: skip
    frame = pandas.DataFrame({"a": [1.5, 2.5], "b": [1, 2]})
    for name, (graph, signature, types) in cases.items():
        files = tmp_path / name
        files.mkdir()
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            files / "model.onnx",
        )
        with packed(files, "onnx", "model.onnx", signature, {}, "m-1", "r", {}) as folder:
            loaded = mlflow.pyfunc.load_model(str(folder))
            schema = loaded.metadata.get_input_schema()
            assert schema.input_names() == ["a", "b"]
            assert [kind.name for kind in schema.input_types()] == types
            if name == "each":  # MLflow's own onnx flavor sends a column as [rows], which is no [rows, 1]
                continue
            # MLflow casts no int64 to a double: whole numbers of a table of floats are sent as floats.
            sent = frame.astype({"b": float})
            assert np.asarray(loaded.predict(sent)["y"]).ravel().tolist() == [2.5, 4.5]


def test_a_model_with_a_folder_of_our_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "interlock").mkdir()
    (tmp_path / "model.py").write_text("")
    with (
        pytest.raises(ConfigError, match="has a file or folder 'interlock'"),
        packed(tmp_path, "python", "model.py", Signature((), ()), {}, "m", "r", {"a.json": b"{}"}),
    ):
        raise AssertionError("it was packed")


def test_metrics_are_those_of_the_files_that_will_be_served(ctx: Context) -> None:
    done = registered(ctx, data=reference.of({"input": X}, Y.astype(float)))
    assert done.provenance is not None and (found := done.provenance.quality) is not None
    assert found.task == "regression" and found.rows == 150
    assert found.metrics["r2"] == pytest.approx(LINE.score(X, Y), abs=1e-5)
    version, folder = done.version, artifact_path(ctx.home, done.version.digest)
    gone = reference.of({"other": X}, Y)
    reasons = provenance.measure(folder, version, gone)
    assert reasons is not None and "the model has the inputs" in reasons.absent["all"]
    assert provenance.measure(folder, version, reference.of({"input": X})) is None
    careful = changed(version, side_effect_free=False)
    assert "side effects" in provenance.measure(folder, careful, ROWS).absent["all"]  # type: ignore[union-attr]


def changed(version: Version, **able: Any) -> Version:
    import msgspec

    capabilities = msgspec.structs.replace(version.capabilities, **able)
    return msgspec.structs.replace(version, capabilities=capabilities)


def test_from_the_command_line_nothing_of_mlflows_is_needed_for_the_code(tmp_path: Path) -> None:
    """A process that never imported MLflow has no active run, and gathering does not import it."""
    code = (
        "import sys; from interlock.operations.provenance import code_of, environment, parent_of; "
        "code_of('x.onnx'); environment(); parent_of(None, None); print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr


def test_what_plain_mlflow_code_registered_is_shown_as_far_as_it_goes(
    ctx: Context, tracking: str, tmp_path: Path
) -> None:
    import pandas
    from mlflow.models import infer_signature

    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    model = LinearRegression().fit(frame, Y)
    location = mlflow.create_experiment("plain", artifact_location=f"file://{tmp_path}/artifacts")
    with mlflow.start_run(experiment_id=location) as training:
        mlflow.log_metric("val_rmse", 0.25)
        mlflow.log_param("alpha", 1)
        mlflow.log_input(mlflow.data.from_pandas(frame, source="/data/iris.csv"))  # type: ignore[attr-defined]
        mlflow.sklearn.log_model(
            model, name="m", signature=infer_signature(frame, model.predict(frame)),
            registered_model_name="plain", pip_requirements=["scikit-learn==1.0"],
        )  # fmt: skip
    found = describe(ctx, "plain", "1")
    assert found.version is None and found.run is not None and not found.is_ours
    assert (found.run.run_id, found.metrics) == (training.info.run_id, {"val_rmse": 0.25})
    assert found.signature is not None and found.signature.columns == ("a", "b", "c", "d")
    assert {spec.datatype for spec in found.signature.inputs} == {"FP64"}
    assert found.requirements[-1] == "scikit-learn==1.0" and "sklearn" in found.flavors
    data = found.provenance.dataset
    assert data is not None and (data.location, data.rows) == ("/data/iris.csv", 150)
    assert data.columns == dict.fromkeys("abcd", "FP64")
    changes = difference(found, describe(ctx, "plain", "1"))
    assert changes.compatible and [metric.name for metric in changes.metrics] == ["val_rmse"]
    resolve(ctx, "plain", "1")
    known = describe(ctx, "plain", "1")
    assert known.version is not None and known.provenance.generated and known.provenance.checks
    assert known.provenance.dataset == data and known.metrics == {"val_rmse": 0.25}
