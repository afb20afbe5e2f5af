"""Holds the runtime `pyfunc` to what MLflow itself gives a model and gets from it."""

import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from interlock.core.errors import (
    EnvironmentFailed,
    LoadFailed,
    OutputMismatch,
    ShapeMismatch,
    UntrustedArtifact,
)
from interlock.core.model import Placement, Signature, Version, digest_of
from interlock.core.table import MISSING, conform
from interlock.runtime.check import check
from interlock.runtime.environment import OPTION, environment_path, interpreter_of, variables_for
from interlock.runtime.pyfunc import TRUST_OPTION, named, runtime


class Table(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Answers with columns; says of each that it came with its own dtype."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        kinds = [str(model_input[name].dtype) for name in model_input]
        assert kinds == ["object", "int64", "float32", "bool", "object", "datetime64[ns]"], kinds
        assert all(isinstance(value, bytes) for value in model_input["raw"])
        year = [-1 if date is pd.NaT else date.year for date in model_input["day"]]
        return pd.DataFrame(
            {
                "upper": [None if text is None else text.upper() for text in model_input["text"]],
                "sum": model_input["whole"] + model_input["part"].astype("float64"),
                "year": year,
            }
        )


class Kind(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Answers with what it got, as `kind` says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        values = np.asarray(model_input)
        if self.kind == "list":
            return values.sum(axis=1).tolist()
        if self.kind == "dicts":
            return [{"n": int(row.sum()), "word": str(row.sum())} for row in values]
        return model_input if self.kind == "same" else pd.Series(values.sum(axis=1))


class Shout(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
        return [text.upper() for text in model_input]


class Pair(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    def predict(self, context: Any, model_input: dict[str, Any], params: Any = None) -> dict[str, Any]:
        return {"both": (model_input["a"] * model_input["b"]).sum(axis=1)}


# MLflow alone takes seconds to import.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COLUMNS = Schema(
    [
        ColSpec(DataType.string, "text"),
        ColSpec(DataType.long, "whole"),
        ColSpec(DataType.float, "part"),
        ColSpec(DataType.boolean, "flag"),
        ColSpec(DataType.binary, "raw"),
        ColSpec(DataType.datetime, "day"),
    ]
)
FRAME = pd.DataFrame(
    {
        "text": ["a", "räksmörgås"],
        "whole": [2, 3],
        "part": np.array([0.5, 1.5], np.float32),
        "flag": [True, False],
        "raw": [b"\x00", b"\xfe"],
        "day": pd.to_datetime(["2024-02-29", "2025-01-01"]),
    }
)


def saved(folder: Path, model: Any, signature: Any, example: Any = None) -> tuple[Path, Version]:
    path = folder / "model"
    mlflow.pyfunc.save_model(
        path, python_model=model, signature=signature, input_example=example, pip_requirements=["mlflow"]
    )
    digest = digest_of(path)
    options = {TRUST_OPTION: digest, OPTION: ""}
    return path, Version("m", "1", digest, "pyfunc", "", Signature((), ()), options=options)


def test_a_table_of_every_type_of_column(tmp_path: Path) -> None:
    folder, version = saved(tmp_path, Table(), ModelSignature(COLUMNS), FRAME)
    report = check(folder, version)
    assert report.failures == () and not report.generated and report.placement is Placement.EXECUTOR
    signature = report.signature
    assert signature.columns == tuple(FRAME)
    assert [spec.datatype for spec in signature.inputs] == [
        "BYTES",
        "INT64",
        "FP32",
        "BOOL",
        "BYTES",
        "BYTES",
    ]
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.outputs] == [
        ("upper", "BYTES", (-1,)),
        ("sum", "FP64", (-1,)),
        ("year", "INT64", (-1,)),
    ]
    loaded = runtime.load(
        folder, Version("m", "1", version.digest, "pyfunc", "", signature, options=version.options)
    )
    sent = {name: FRAME[name].to_numpy() for name in FRAME if name != "day"}
    sent["day"] = np.array(["2024-02-29", "2025-01-01T10:00:00"], object)
    answer = loaded.predict(conform(signature, sent))
    assert answer["upper"].tolist() == [b"A", "RÄKSMÖRGÅS".encode()]
    assert answer["sum"].tolist() == [2.5, 4.5] and answer["year"].tolist() == [2024, 2025]
    gaps = {**sent, "text": np.array([None, "b"], object), "day": np.array([None, "2025-01-01"], object)}
    answer = loaded.predict(conform(signature, gaps))
    assert answer["upper"].tolist() == [MISSING, b"B"] and answer["year"].tolist() == [-1, 2025]


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("list", ["output"]), ("dicts", ["n", "word"]), ("series", ["output"]), ("same", ["a", "b"])],
)
def test_a_table_of_equal_numbers_is_one_input(tmp_path: Path, kind: str, outputs: list[str]) -> None:
    X = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    folder, version = saved(tmp_path, Kind(kind), infer_signature(X))
    report = check(folder, version)
    assert report.failures == () and report.generated
    assert [(spec.datatype, spec.shape) for spec in report.signature.inputs] == [("FP64", (-1, 2))]
    assert report.signature.columns == ("a", "b")
    assert [spec.name for spec in report.signature.outputs] == outputs


def test_tensors_keep_their_shapes_and_names(tmp_path: Path) -> None:
    schema = Schema(
        [TensorSpec(np.dtype(np.float32), (-1, 3), "a"), TensorSpec(np.dtype(np.float32), (-1, 3), "b")]
    )
    folder, version = saved(tmp_path / "named", Pair(), ModelSignature(schema))
    found = runtime.inspect(folder, version, None)
    assert [(spec.name, spec.shape) for spec in found.inputs] == [("a", (-1, 3)), ("b", (-1, 3))]
    assert [spec.name for spec in found.outputs] == ["both"]
    one = Schema([TensorSpec(np.dtype(np.float64), (-1, 2, 2))])
    folder, version = saved(tmp_path / "only", Kind("same"), ModelSignature(one))
    report = check(folder, version)
    assert report.failures == ()
    assert [spec.name for spec in report.signature.inputs] == ["input"]
    loaded = runtime.load(
        folder, Version("m", "1", version.digest, "pyfunc", "", report.signature, options=version.options)
    )
    with pytest.raises(ShapeMismatch, match=r"\[1, 2, 3\]"):
        loaded.predict({"input": np.zeros((1, 2, 3))})


def test_type_hints_get_a_list(tmp_path: Path) -> None:
    folder, version = saved(tmp_path, Shout(), None)
    report = check(folder, version)
    assert report.failures == ()
    loaded = runtime.load(
        folder, Version("m", "1", version.digest, "pyfunc", "", report.signature, options=version.options)
    )
    answer = loaded.predict({"input": np.array([[b"a"], [b"bc"]], object)})
    assert answer["output"].tolist() == [b"A", b"BC"]


def test_no_signature_and_types_that_no_tensor_holds_are_refused(tmp_path: Path) -> None:
    folder, version = saved(tmp_path / "none", Kind("same"), None)
    with pytest.raises(LoadFailed, match=r"no signature.*infer_signature.*set_signature"):
        runtime.inspect(folder, version, None)
    lists = infer_signature([{"a": [1.0, 2.0]}])
    folder, version = saved(tmp_path / "lists", Kind("same"), lists)
    with pytest.raises(LoadFailed, match="column 'a' has MLflow's type .*which no tensor holds"):
        runtime.inspect(folder, version, None)


def test_nothing_is_loaded_that_nobody_vouched_for(tmp_path: Path) -> None:
    folder, version = saved(tmp_path, Kind("same"), infer_signature(pd.DataFrame({"a": [1.0]})))
    for options in ({}, {TRUST_OPTION: "sha256:" + "0" * 64}):
        untrusted = Version("m", "1", version.digest, "pyfunc", "", Signature((), ()), options=options)
        with pytest.raises(UntrustedArtifact, match="interlock release m 1 --trust"):
            runtime.load(folder, untrusted)


def test_it_runs_in_its_own_environment_or_not_at_all(tmp_path: Path) -> None:
    folder, version = saved(tmp_path, Kind("same"), infer_signature(pd.DataFrame({"a": [1.0]})))
    digest = "sha256:" + "1" * 64
    options = {**version.options, OPTION: digest}
    own = Version("m", "1", version.digest, "pyfunc", "", Signature((), ()), options=options)
    with pytest.raises(EnvironmentFailed, match="own environment 11111.*interlock release m 1"):
        runtime.load(folder, own)
    home = tmp_path / "home"
    assert interpreter_of(home, own) == interpreter_of(home, version) == sys.executable
    python = environment_path(home, digest) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert interpreter_of(home, own) == str(python)
    given = {"PYTHONPATH": "/x", "PATH": "/bin"}
    assert variables_for(sys.executable, given) == given
    assert variables_for(str(python), given) == {"PATH": "/bin"}


def test_what_models_return_becomes_tensors() -> None:
    assert named([[1, 2], [3, 4]], "y")["y"].tolist() == [[1, 2], [3, 4]]
    answer = named(pd.DataFrame({"v": [[1.0, 2.0], [3.0, 4.0]], 7: [None, "x"], "n": [1, None]}), "y")
    assert answer["v"].tolist() == [[1.0, 2.0], [3.0, 4.0]] and answer["v"].dtype == np.float64
    assert answer["7"].tolist() == [MISSING, b"x"] and np.isnan(answer["n"][1])
    days = named(pd.DataFrame({"day": pd.to_datetime(["2025-01-01"])}), "y")["day"]
    assert days[0].startswith(b"2025-01-01T00:00:00")
    for broken in (pd.DataFrame({"v": [[1.0], [1.0, 2.0]]}), {"v": object()}, 1j * np.ones(2)):
        with pytest.raises(OutputMismatch, match="no tensor holds"):
            named(broken, "v")
