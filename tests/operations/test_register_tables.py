"""Holds `register` for models of tables: DataFrames in, the same answers over columns and over one tensor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from interlock.core.errors import CheckFailed
from interlock.core.model import Tensors, artifact_path
from interlock.core.table import conform
from interlock.operations import reference
from interlock.operations.context import Context, open_context
from interlock.operations.register import Registered, register
from interlock.runtime.catalog import runtime_of

pytestmark = pytest.mark.slow


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


def customers(rows: int = 600) -> tuple[pd.DataFrame, Any]:
    """Six columns of five kinds, made up with a seed, and who left."""
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


def numbers() -> Any:
    return make_pipeline(SimpleImputer(), StandardScaler())


def pipeline(last: Any) -> Any:
    steps = [
        ("numbers", numbers(), ["age", "visits"]),
        ("texts", OneHotEncoder(handle_unknown="ignore"), ["city", "plan"]),
        ("flags", "passthrough", ["member"]),
    ]
    return Pipeline([("columns", ColumnTransformer(steps)), ("model", last)])


def answers(ctx: Context, done: Registered, sent: Tensors) -> Tensors:
    version = done.version
    loaded = runtime_of(version.runtime).load(artifact_path(ctx.home, version.digest), version)
    return loaded.predict(conform(version.signature, sent))


def same(ctx: Context, done: Registered, model: Any, frame: pd.DataFrame, tolerance: float = 1e-5) -> None:
    """The version answers as the model does on a DataFrame, sent as columns and as one table of texts."""
    columns = {name: np.asarray(frame[name].astype(object)) for name in frame.columns}
    table = frame.astype(object).to_numpy()
    for sent in (columns, {"table": table}):
        answer = answers(ctx, done, sent)
        assert answer["label"].astype(str).tolist() == model.predict(frame).astype(str).tolist()
        np.testing.assert_allclose(answer["probabilities"], model.predict_proba(frame), atol=tolerance)


def test_a_pipeline_on_mixed_columns_becomes_onnx(ctx: Context) -> None:
    frame, left = customers()
    model = pipeline(LogisticRegression(max_iter=500)).fit(frame, left)
    done = register(ctx, "churn", model, data=reference.of(frame, left))
    assert done.conversion is not None and done.conversion.converted, done.conversion
    assert done.conversion.rows >= 4000 and (done.conversion.difference or 1) <= 1e-5
    version = done.version
    assert version.runtime == "onnx" and version.signature.columns == tuple(frame.columns)
    assert [spec.shape for spec in version.signature.inputs] == [(-1, 1)] * 5
    odd = frame.head(4).copy()
    odd.loc[0, "age"] = np.nan
    odd.loc[1, "city"] = "Nowhere"
    odd["city"] = odd["city"].astype(object)
    odd.loc[2, "city"] = None
    same(ctx, done, model, frame)
    same(ctx, done, model, odd)


def test_what_cannot_be_converted_gets_a_data_frame(ctx: Context) -> None:
    frame, left = customers()
    frame = frame[["plan", "age", "visits"]]
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=5).fit(frame, left)
    done = register(ctx, "churn", model, data=reference.of(frame, left))
    assert done.version.runtime == "sklearn" and done.conversion is not None
    assert "cannot be converted" in done.conversion.reason
    same(ctx, done, model, frame)


def test_numbers_that_are_chosen_by_name_stay_one_tensor(ctx: Context) -> None:
    frame, left = customers()
    frame = frame[["visits", "age"]]
    steps = [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["visits"])]
    model = Pipeline([("columns", ColumnTransformer(steps)), ("model", LogisticRegression())]).fit(
        frame, left
    )
    done = register(ctx, "churn", model, data=reference.of(frame, left))
    version = done.version
    assert version.runtime == "onnx", done.conversion
    assert [(spec.name, spec.shape) for spec in version.signature.inputs] == [("input", (-1, 2))]
    assert version.signature.columns == ("visits", "age")
    same(ctx, done, model, frame)


def test_columns_are_taken_in_the_order_of_the_fit_and_others_left_out(ctx: Context) -> None:
    frame, left = customers()
    model = LogisticRegression().fit(frame[["visits", "age"]], left)
    done = register(ctx, "churn", model, data=reference.of(frame, left))
    assert done.version.signature.columns == ("visits", "age")
    same(ctx, done, model, frame[["visits", "age"]])


def test_data_without_a_column_of_the_fit_are_refused(ctx: Context) -> None:
    frame, left = customers()
    model = LogisticRegression().fit(frame[["visits", "age"]], left)
    with pytest.raises(CheckFailed, match=r"the reference data have no \['visits'\]"):
        register(ctx, "churn", model, data=reference.of(frame[["age"]], left))
    assert ctx.ledger.versions() == []
