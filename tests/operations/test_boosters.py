"""Boosted models from a file, from an object and from plain MLflow code: registered, and the same."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from interlock.core.errors import CheckFailed, LoadFailed, UnknownFormat
from interlock.core.model import artifact_path
from interlock.operations import artifact_boosters, reference
from interlock.operations.artifact import recognise
from interlock.operations.context import open_context, opened
from interlock.operations.register import register
from interlock.operations.resolve import resolve
from interlock.runtime.catalog import runtime_of
from interlock.runtime.examples import difference
from tests.runtime.boosters import CASES, WORDS, columns_of, frame, numbers


@pytest.mark.parametrize("name", ["xgboost: two classes", "xgboost: stopped early", "lightgbm: regression"])
def test_a_file_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    given = recognise(str(tmp_path / case.version.entry), trust=False)
    assert given.runtime == case.version.runtime
    (tmp_path / "out").mkdir()
    given.fill(tmp_path / "out")
    assert (tmp_path / "out" / given.entry).read_bytes() == (tmp_path / case.version.entry).read_bytes()


@pytest.mark.parametrize("name", ["notes.txt", "data.json"])
def test_another_text_is_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"a": 1}')
    with pytest.raises(UnknownFormat, match=r"\.ubj, \.json \(XGBoost\)"):
        recognise(str(tmp_path / name), trust=False)


class Mine(xgboost.XGBRegressor):
    pass


def test_an_object_is_written_with_what_its_file_does_not_say(tmp_path: Path) -> None:
    X, y = numbers(60)
    few: dict[str, Any] = {"n_estimators": 2, "n_jobs": 1}
    made = {
        "own": (Mine(missing=-9.0, **few).fit(np.nan_to_num(X), y), "xgboost", {"missing": -9.0}),
        "booster": (xgboost.train({}, xgboost.DMatrix(X, y), 2), "xgboost", {}),
        "words": (
            lightgbm.LGBMClassifier(verbose=-1, **few).fit(X, WORDS[y]),
            "lightgbm",
            {"classes": ["high", "low", "mid"]},
        ),
        "scores": (lightgbm.LGBMRegressor(verbose=-1, **few).fit(X, y), "lightgbm", {}),
    }
    for name, (model, runtime, options) in made.items():
        (tmp_path / name).mkdir()
        given = recognise(model, trust=False)
        assert (given.runtime, given.fill(tmp_path / name)) == (runtime, options)
        assert (tmp_path / name / given.entry).is_file()
    assert artifact_boosters.of_object(X) is None
    with pytest.raises(LoadFailed, match="this XGBRegressor cannot be saved"):
        recognise(xgboost.XGBRegressor(), trust=False).fill(tmp_path)


@pytest.mark.slow
def test_named_columns_and_categories_come_from_the_data(home_with_store: Path) -> None:
    X, y = numbers(300)
    import pandas

    table = pandas.DataFrame(X, columns=[f"c {index}" for index in range(6)])
    model = lightgbm.LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1).fit(table, WORDS[y])
    data, answers = frame()
    categories = xgboost.XGBClassifier(n_estimators=5, enable_categorical=True, n_jobs=1).fit(data, answers)
    with opened(home_with_store) as ctx:
        made = register(ctx, "words", model, data=reference.of(table[list(table.columns[::-1])]))
        assert made.version.signature.columns == tuple(table.columns)
        assert made.conversion is not None and made.conversion.rows > 4000
        assert (made.conversion.difference or 0) < 1e-5
        loaded = runtime_of(made.version.runtime).load(
            artifact_path(ctx.home, made.version.digest), made.version
        )
        for rows in (1, 8, 128, 300):
            found = loaded.predict({"input": X[:rows]})
            assert np.array_equal(found["label"], model.predict(table[:rows]))
            assert np.allclose(found["probabilities"], model.predict_proba(table[:rows]), atol=1e-6)
        loaded.close()
        made = register(ctx, "letters", categories, data=reference.of(data[list(data.columns[::-1])]))
        assert [spec.datatype for spec in made.version.signature.inputs] == ["INT64", "FP64", "BYTES", "FP64"]
        loaded = runtime_of("xgboost").load(artifact_path(ctx.home, made.version.digest), made.version)
        found = loaded.predict(columns_of(data))
        assert np.array_equal(found["probabilities"], categories.predict_proba(data))
        loaded.close()
        with pytest.raises(CheckFailed, match=r"have no \['c_5'\]"):
            register(ctx, "lacking", model, data=reference.of(table.drop(columns="c 5")))


@pytest.mark.slow
def test_a_truncated_file_is_refused_wherever_it_ends(home_with_store: Path, tmp_path: Path) -> None:
    with opened(home_with_store) as ctx:
        for name, shares in (("xgboost: two classes", (0.5, 0.99)), ("lightgbm: two classes", (0.2, 0.6))):
            case = CASES[name](tmp_path)
            whole = (tmp_path / case.version.entry).read_bytes()
            for share in shares:
                path = tmp_path / f"cut{Path(case.version.entry).suffix}"
                path.write_bytes(whole[: int(len(whole) * share)])
                with pytest.raises((LoadFailed, CheckFailed)):
                    register(ctx, "cut", path)
        assert ctx.ledger.versions("cut") == []


PLAIN = """
import sys
import lightgbm, mlflow, numpy as np, xgboost
mlflow.set_tracking_uri(sys.argv[1])
mlflow.create_experiment("plain", artifact_location="file://" + sys.argv[2])
mlflow.set_experiment("plain")
random = np.random.default_rng(0)
X = random.standard_normal((200, 4)).astype(np.float32)
y = (X[:, 0] > 0).astype(int)
few = dict(n_estimators=5, n_jobs=1)
wrapper = xgboost.XGBClassifier(**few).fit(X, y)
light = lightgbm.LGBMClassifier(verbose=-1, **few).fit(X, np.array(["no", "yes"])[y])
options = dict(registered_model_name="plain", name="model", pip_requirements=["xgboost"])
mlflow.xgboost.log_model(wrapper, **options)
mlflow.xgboost.log_model(wrapper.get_booster(), **options)
mlflow.lightgbm.log_model(light, **options)
mlflow.lightgbm.log_model(light.booster_, **options)
booster = wrapper.get_booster().inplace_predict(X)
answers = dict(a=wrapper.predict_proba(X), b=booster, c=light.predict_proba(X), d=light.booster_.predict(X))
np.savez(sys.argv[3], X=X, **answers)
"""


@pytest.mark.slow
def test_what_plain_mlflow_code_registered_is_served_as_it_is(tmp_path: Path, empty_store: Path) -> None:
    uri = f"sqlite:///{tmp_path}/tracking.db"
    shutil.copy(empty_store, tmp_path / "tracking.db")
    answers = tmp_path / "answers.npz"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, uri, str(tmp_path / "artifacts"), str(answers)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    with np.load(answers) as stored:
        wanted = {name: stored[name] for name in stored.files}
    ctx = open_context(tmp_path / "home", tracking_uri=uri)
    found = {}
    for number, runtime in (("1", "xgboost"), ("2", "xgboost"), ("3", "sklearn"), ("4", "lightgbm")):
        version = resolve(ctx, "plain", number)
        assert version.runtime == runtime
        loaded = runtime_of(runtime).load(artifact_path(ctx.home, version.digest), version)
        found[number] = loaded.predict({"input": wanted["X"]})
        loaded.close()
    assert np.array_equal(found["1"]["probabilities"], wanted["a"])
    assert found["1"]["label"].tolist() == (wanted["a"][:, 1] > 0.5).astype(int).tolist()
    assert np.array_equal(found["2"]["prediction"][:, 0], wanted["b"])
    assert difference({"p": found["3"]["probabilities"]}, {"p": wanted["c"]}) < 1e-6
    assert set(found["3"]["label"].tolist()) == {"no", "yes"}
    assert np.array_equal(found["4"]["prediction"][:, 0], wanted["d"])
    ctx.close()
