"""Holds how a scikit-learn model is kept: as ONNX where that answers alike, over arrays and over tables.

Whole registrations: tests/operations/test_register.py, test_table_answers.py.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from interlock.core.errors import CheckFailed, LoadFailed, UntrustedArtifact
from interlock.core.model import Placement
from interlock.core.table import conform
from interlock.operations import reference
from tests.runtime.prepared import Ready, prepared

pytestmark = pytest.mark.slow  # the first test of this file imports every module of scikit-learn

X, Y = load_iris(return_X_y=True)
ROWS = reference.of(X, Y)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (GaussianNB(), "differs in probabilities"),
        (KMeans(3, random_state=0, n_init=1), "64-bit floats"),
        (HistGradientBoostingClassifier(max_iter=3), "cannot be converted"),
    ],
    ids=["another answer", "float64 only", "no converter"],
)
def test_what_onnx_does_not_answer_alike_is_kept(tmp_path: Path, estimator: Any, said: str) -> None:
    made = prepared(estimator.fit(X, Y), tmp_path, ROWS)
    assert not made.conversion.converted and said in made.conversion.reason
    version = made.version
    assert (version.runtime, version.placement) == ("sklearn", Placement.EXECUTOR)
    answer = made.loaded.predict(
        {"input": X.astype(np.float32 if "FP32" in str(version.signature.inputs) else np.float64)}
    )
    assert next(iter(answer.values())).ravel().tolist() == estimator.predict(X).tolist()


def test_without_reference_data_nothing_is_converted(tmp_path: Path) -> None:
    made = prepared(LogisticRegression(max_iter=500).fit(X, Y), tmp_path)
    assert "--data" in made.conversion.reason and made.generated
    assert made.version.runtime == "sklearn"


@pytest.mark.parametrize(("suffix", "write"), [(".skops", skops.io.dump), (".joblib", joblib.dump)])
def test_a_file_becomes_onnx(tmp_path: Path, suffix: str, write: Callable[..., Any]) -> None:
    model = LogisticRegression(max_iter=500).fit(X, Y)
    write(model, tmp_path / f"model{suffix}")
    made = prepared(tmp_path / f"model{suffix}", tmp_path, ROWS, trust=suffix != ".skops")
    assert made.version.runtime == "onnx"
    answer = made.loaded.predict({"input": X.astype(np.float32)})
    assert answer["label"].tolist() == model.predict(X).tolist()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_types_of_unknown_packages_need_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange.py").write_text(
        "from sklearn.linear_model import LinearRegression\nclass Odd(LinearRegression):\n    pass\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        model = importlib.import_module("strange").Odd().fit(np.eye(3), [0, 1, 2])
        skops.io.dump(model, tmp_path / "odd.skops")
    del sys.modules["strange"]
    for trust, kind, said in ((False, UntrustedArtifact, r"strange\.Odd"), (True, LoadFailed, "strange")):
        folder = tmp_path / str(trust)
        folder.mkdir()
        with pytest.raises(kind, match=said):  # vouched for, it is not installed here all the same
            prepared(tmp_path / "odd.skops", folder, trust=trust)


@pytest.mark.parametrize(
    ("model", "said"),
    [(LogisticRegression(), "fitted"), (LinearRegression().fit(X[:, :2], Y), "features|shape")],
    ids=["not fitted", "data of another width"],
)
def test_what_answers_nothing_is_refused(tmp_path: Path, model: Any, said: str) -> None:
    with pytest.raises((LoadFailed, CheckFailed), match=said):
        prepared(model, tmp_path, ROWS)


# Tables: a DataFrame was fitted on, and its columns come in, or one tensor of them.


def customers(rows: int = 600) -> tuple[pd.DataFrame, Any]:
    """Five columns of as many kinds, made up with a seed, and who left."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 12, rows),
            "visits": random.integers(0, 20, rows),
            "city": random.choice(["Ghent", "Bruges", "Leuven"], rows),
            "plan": pd.Categorical(random.choice(["basic", "plus"], rows)),
            "member": random.random(rows) < 0.4,
        }
    )
    left = np.where(frame.age + 3 * frame.visits + 10 * (frame.city == "Ghent") > 75, "stayed", "left")
    return frame, left


def same(made: Ready, model: Any, frame: pd.DataFrame, tolerance: float = 1e-5) -> None:
    """It answers as the model does on a DataFrame, sent as columns and as one table of texts."""
    columns = {name: np.asarray(frame[name].astype(object)) for name in frame.columns}
    table = frame.astype(object).to_numpy()
    for sent in (columns, {"table": table}):
        answer = made.loaded.predict(conform(made.version.signature, sent))
        assert answer["label"].astype(str).tolist() == model.predict(frame).astype(str).tolist()
        np.testing.assert_allclose(answer["probabilities"], model.predict_proba(frame), atol=tolerance)


def test_a_pipeline_on_mixed_columns_becomes_onnx(tmp_path: Path) -> None:
    frame, left = customers()
    steps = [
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "visits"]),
        ("texts", OneHotEncoder(handle_unknown="ignore"), ["city", "plan"]),
        ("flags", "passthrough", ["member"]),
    ]
    model = Pipeline([("columns", ColumnTransformer(steps)), ("model", LogisticRegression(max_iter=500))])
    model.fit(frame, left)
    made = prepared(model, tmp_path, reference.of(frame, left))
    assert made.conversion.converted, made.conversion
    assert made.conversion.rows >= 4000 and (made.conversion.difference or 1) <= 1e-5
    assert made.version.runtime == "onnx" and made.version.signature.columns == tuple(frame.columns)
    assert [spec.shape for spec in made.version.signature.inputs] == [(-1, 1)] * 5
    odd = frame.head(4).copy()
    odd.loc[0, "age"] = np.nan
    odd.loc[1, "city"] = "Nowhere"
    odd["city"] = odd["city"].astype(object)
    odd.loc[2, "city"] = None
    same(made, model, frame)
    same(made, model, odd)


def test_what_cannot_be_converted_gets_a_data_frame(tmp_path: Path) -> None:
    frame, left = customers()
    frame = frame[["plan", "age", "visits"]]
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=5).fit(frame, left)
    made = prepared(model, tmp_path, reference.of(frame, left))
    assert made.version.runtime == "sklearn" and "cannot be converted" in made.conversion.reason
    same(made, model, frame)


def test_numbers_that_are_chosen_by_name_stay_one_tensor(tmp_path: Path) -> None:
    frame, left = customers()
    frame = frame[["visits", "age"]]
    steps = [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["visits"])]
    model = Pipeline([("columns", ColumnTransformer(steps)), ("model", LogisticRegression())]).fit(
        frame, left
    )
    made = prepared(model, tmp_path, reference.of(frame, left))
    assert made.version.runtime == "onnx", made.conversion
    assert [(spec.name, spec.shape) for spec in made.version.signature.inputs] == [("input", (-1, 2))]
    assert made.version.signature.columns == ("visits", "age")
    same(made, model, frame)


def test_columns_are_taken_in_the_order_of_the_fit_and_others_left_out(tmp_path: Path) -> None:
    frame, left = customers()
    model = LogisticRegression().fit(frame[["visits", "age"]], left)
    made = prepared(model, tmp_path, reference.of(frame, left))
    assert made.version.signature.columns == ("visits", "age")
    same(made, model, frame[["visits", "age"]])


def test_data_without_a_column_of_the_fit_are_refused(tmp_path: Path) -> None:
    frame, left = customers()
    model = LogisticRegression().fit(frame[["visits", "age"]], left)
    with pytest.raises(CheckFailed, match=r"the reference data have no \['visits'\]"):
        prepared(model, tmp_path, reference.of(frame[["age"]], left))
