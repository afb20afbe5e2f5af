"""Holds that a version answers as its pipeline does on a DataFrame of any columns, in each form."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from interlock.codec.v2infer import Codec
from interlock.core.model import Tensors, Version, artifact_path
from interlock.core.table import conform
from interlock.operations import reference
from interlock.operations.context import open_context
from interlock.operations.register import register
from interlock.runtime import check as check_module
from interlock.runtime import convert
from interlock.runtime.catalog import runtime_of
from interlock.runtime.protocol import Loaded
from interlock.runtime.table import table_of
from tests.runtime.prepared import prepared

pytestmark = pytest.mark.slow

ROWS = 40
KINDS = ("float", "int", "Int64", "bool", "text", "category")
LETTERS = st.text("abcé名 _-🙂.", min_size=1, max_size=6).filter(lambda name: name == name.strip())


def column(kind: str, random: np.random.Generator, has_gaps: bool) -> Any:
    gaps = random.random(ROWS) < 0.2
    if kind == "float":
        values = random.normal(size=ROWS).round(3)
        return np.where(gaps, np.nan, values) if has_gaps else values
    if kind == "bool":
        return random.random(ROWS) < 0.5
    if kind == "Int64" and has_gaps:
        return pd.array(
            [None if gap else n for gap, n in zip(gaps, random.integers(9, size=ROWS), strict=True)], "Int64"
        )
    if kind in ("int", "Int64"):
        return random.integers(-9, 9, ROWS)
    texts = random.choice(["Gent", "Liège", "名古屋", ""], ROWS).astype(object)
    if has_gaps:
        texts[gaps] = None if random.random() < 0.5 else np.nan
    return pd.Categorical(texts) if kind == "category" else texts


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    names = draw(st.lists(LETTERS, min_size=1, max_size=5, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return pd.DataFrame(
        {name: column(draw(st.sampled_from(KINDS)), random, draw(st.booleans())) for name in names}
    )


def fitted(frame: pd.DataFrame) -> Any:
    texts = [name for name in frame.columns if frame[name].dtype == object or frame[name].dtype == "category"]
    numbers = [name for name in frame.columns if name not in texts]
    steps = [
        ("numbers", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), numbers),
        ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
    ]
    model = Pipeline([("columns", ColumnTransformer(steps)), ("model", Ridge())])
    return model.fit(frame, np.random.default_rng(1).normal(size=ROWS))


def forms(version: Version, frame: pd.DataFrame) -> dict[str, Tensors]:
    """The same rows as columns, as one table, and as JSON."""
    plain = {
        name: np.array([None if pd.isna(value) else value for value in frame[name].tolist()], object)
        for name in frame.columns
    }
    table = table_of(version.options)
    assert table is not None
    message = {
        "inputs": [
            {
                "name": name,
                "datatype": "FP64" if datatype.startswith("FP") else datatype,
                "shape": [len(frame)],
                "data": plain[name].tolist(),
            }
            for name, datatype in table.columns
        ]
    }
    decoded, rows, *_ = Codec("m", "1", version.signature).decode(json.dumps(message).encode(), None)
    assert rows == len(frame)
    return {
        "columns": conform(version.signature, plain),
        "table": conform(version.signature, {"rows": np.column_stack(list(plain.values()))}),
        "JSON": {name: np.asarray(values) for name, values in decoded.items()},
    }


def same(version: Version, loaded: Loaded, model: Any, frame: pd.DataFrame) -> None:
    wanted = model.predict(frame)
    for form, inputs in forms(version, frame).items():
        answer = loaded.predict(inputs)["prediction"].ravel()
        np.testing.assert_allclose(answer, wanted, atol=2e-5, err_msg=form)


@given(frames())
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_columns_in_any_form(frame: pd.DataFrame) -> None:
    model = fitted(frame)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "RACE_S", 0.0)
        patch.setattr(check_module, "MEASURED_ROWS", (1, 8))
        made = prepared(model, Path(folder), reference.of(frame))
        same(made.version, made.loaded, model, frame)
        same(made.version, made.loaded, model, frame.iloc[:1])
        made.loaded.close()


def test_one_of_them_through_a_registration(home_with_store: Path) -> None:
    random = np.random.default_rng(7)
    frame = pd.DataFrame({f"{kind} é": column(kind, random, True) for kind in KINDS})
    model = fitted(frame)
    context = open_context(home_with_store)
    done = register(context, "m", model, data=reference.of(frame))
    assert done.conversion is not None and done.conversion.rows >= 4000
    version, folder = done.version, artifact_path(context.home, done.version.digest)
    assert version.signature.columns == tuple(frame.columns)
    same(version, runtime_of(version.runtime).load(folder, version), model, frame)
    context.close()
