"""Owns the boosted models that tests load: trained by the packages, with what those answer beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pandas
import xgboost

from interlock.core.model import Array, Tensors, Version
from tests.runtime.models import version

COLUMNS = ("age", "income", "town", "plan")


class Case(msgspec.Struct, frozen=True):
    """A version in a folder, requests for it by rows, and what the package answers to them."""

    version: Version
    inputs: Tensors
    wanted: Tensors


def numbers(rows: int = 400, columns: int = 6, seed: int = 0) -> tuple[Array, Array]:
    """Float64 values of which float32 has not all digits; some missing; an answer in 0, 1, 2."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((rows, columns))
    y = np.digitize(X[:, 0] + X[:, 1] ** 2 - X[:, 2], [0.0, 1.2])
    X[random.random(X.shape) < 0.1] = np.nan
    return X, y


def frame(rows: int = 400, seed: int = 0) -> tuple[pandas.DataFrame, Array]:
    """Two numbers, a text and a whole number as categories, each missing in some rows."""
    random = np.random.default_rng(seed)
    made = pandas.DataFrame(
        {
            "age": random.integers(18, 90, rows),
            "income": random.standard_normal(rows),
            "town": pandas.Categorical(random.choice(np.array(["b", "ä", "a", None], object), rows)),
            "plan": pandas.Categorical(random.choice([30, 10, 20], rows)),
        }
    )
    y = (made["town"] == "a") ^ (made["plan"] == 20) ^ (made["age"] > 50)
    return made, y.to_numpy().astype(int)


def columns_of(data: pandas.DataFrame) -> Tensors:
    """The frame as requests bring it: one input a column."""
    town = np.empty((len(data), 1), object)
    town[:, 0] = [b"\xff" if value != value else value.encode() for value in data["town"].astype(object)]
    return {
        "age": data["age"].to_numpy(np.float32)[:, None],
        "income": data["income"].to_numpy()[:, None],
        "town": town,
        "plan": data["plan"].astype(float).to_numpy()[:, None],
    }


def _answers(model: Any, X: Any) -> Tensors:
    """As the scikit-learn wrapper answers."""
    if not hasattr(model, "predict_proba"):
        values = np.asarray(model.predict(X))
        return {"prediction": values.reshape(len(values), -1)}
    label = np.asarray(model.predict(X))
    return {
        "label": label.astype(object) if label.dtype.kind == "U" else label,
        "probabilities": np.asarray(model.predict_proba(X)),
    }


def xgb(make: Callable[[], Any], target: Callable[[Array], Array] = lambda y: y, **fit: Any) -> Any:
    def write(folder: Path) -> Case:
        X, y = numbers()
        model = make().fit(X, target(y), **fit)
        model.save_model(folder / "model.ubj")
        rows = X.astype(np.float32)
        return Case(version("xgboost", "model.ubj"), {"input": rows}, _answers(model, rows))

    return write


def _xgb_early(folder: Path) -> Case:
    X, y = numbers()
    model = xgboost.XGBClassifier(n_estimators=60, learning_rate=1.0, early_stopping_rounds=20, n_jobs=1)
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(folder / "model.json")
    rows = X.astype(np.float32)
    return Case(version("xgboost", "model.json"), {"input": rows}, _answers(model, rows))


def _xgb_booster(objective: str, **parameters: Any) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        X, y = numbers()
        rows = X.astype(np.float32)
        y = y if "num_class" in parameters else (y > 0).astype(int)
        data = xgboost.DMatrix(rows, y, feature_names=[f"f {index}" for index in range(6)])
        model = xgboost.train({"objective": objective, "nthread": 1, **parameters}, data, 7)
        model.save_model(folder / "model.ubj")
        wanted = model.predict(data, strict_shape=True)
        return Case(version("xgboost", "model.ubj"), {"input": rows}, {"prediction": wanted})

    return write


def _xgb_ranker(folder: Path) -> Case:
    X, y = numbers()
    model = xgboost.XGBRanker(n_estimators=5, n_jobs=1).fit(X, y, qid=np.repeat(np.arange(40), 10))
    model.save_model(folder / "model.ubj")
    rows = X.astype(np.float32)
    return Case(version("xgboost", "model.ubj"), {"input": rows}, _answers(model, rows))


def _xgb_missing(folder: Path) -> Case:
    X, y = numbers()
    rows = np.nan_to_num(X, nan=-999.0).astype(np.float32)
    model = xgboost.XGBRegressor(n_estimators=5, missing=-999.0, n_jobs=1).fit(rows, y)
    model.save_model(folder / "model.ubj")
    return Case(version("xgboost", "model.ubj", missing=-999.0), {"input": rows}, _answers(model, rows))


def _xgb_categories(folder: Path) -> Case:
    data, y = frame()
    data["town"] = data["town"].cat.rename_categories({"ä": "c"})
    model = xgboost.XGBClassifier(n_estimators=7, enable_categorical=True, n_jobs=1).fit(data, y)
    model.save_model(folder / "model.ubj")
    inputs = columns_of(data)
    inputs["income"] = inputs["income"].astype(np.float32)
    return Case(version("xgboost", "model.ubj"), inputs, _answers(model, data))


def _xgb_letters(folder: Path) -> Case:
    """With a category that is not ASCII, which XGBoost does not write out."""
    data, y = frame()
    model = xgboost.XGBClassifier(n_estimators=7, enable_categorical=True, n_jobs=1).fit(data, y)
    model.save_model(folder / "model.ubj")
    inputs = columns_of(data)
    inputs["income"] = inputs["income"].astype(np.float32)
    table = {
        "columns": [["age", "INT64"], ["income", "FP32"], ["town", "BYTES"], ["plan", "INT64"]],
        "categories": {"town": ["a", "b", "ä"], "plan": [10, 20, 30]},
    }
    inputs["age"] = inputs["age"].astype(np.int64)
    return Case(version("xgboost", "model.ubj", table=table), inputs, _answers(model, data))


def lgb(make: Callable[[], Any], target: Callable[[Array], Array] = lambda y: y, **fit: Any) -> Any:
    def write(folder: Path) -> Case:
        X, y = numbers()
        model = make().fit(X, target(y), **fit)
        model.booster_.save_model(folder / "model.txt")
        options = {"classes": model.classes_.tolist()} if hasattr(model, "classes_") else {}
        return Case(version("lightgbm", "model.txt", **options), {"input": X}, _answers(model, X))

    return write


def _lgb_early(folder: Path) -> Case:
    X, y = numbers()
    model = lightgbm.LGBMClassifier(n_estimators=60, learning_rate=0.3, verbose=-1, n_jobs=1)
    stop = lightgbm.early_stopping(20, verbose=False)
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])], callbacks=[stop])
    assert model.booster_.num_trees() == model.best_iteration_ * 3 < 60 * 3
    model.booster_.save_model(folder / "model.txt")
    options = {"classes": model.classes_.tolist()}
    return Case(version("lightgbm", "model.txt", **options), {"input": X}, _answers(model, X))


def _lgb_booster(objective: str, **parameters: Any) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        X, y = numbers()
        y = y if "num_class" in parameters else (y > 0).astype(int)
        how = {"objective": objective, "verbose": -1, "num_threads": 1, **parameters}
        model = lightgbm.train(how, lightgbm.Dataset(X, y, feature_name=list("abcdef")), 7)
        model.save_model(folder / "model.lgb")
        wanted = np.asarray(model.predict(X)).reshape(len(X), -1)
        return Case(version("lightgbm", "model.lgb"), {"input": X}, {"prediction": wanted})

    return write


def _lgb_categories(folder: Path) -> Case:
    data, y = frame()
    model = lightgbm.LGBMClassifier(n_estimators=7, verbose=-1, n_jobs=1, min_child_samples=5)
    model.fit(data, np.array(["no", "yes"])[y])
    model.booster_.save_model(folder / "model.txt")
    inputs = columns_of(data)
    inputs["age"] = inputs["age"].astype(np.float64)
    return Case(version("lightgbm", "model.txt", classes=["no", "yes"]), inputs, _answers(model, data))


def _quiet(cls: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(n_estimators=7, verbose=-1, n_jobs=1, min_child_samples=5, **options)


def _few(cls: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(n_estimators=7, n_jobs=1, **options)


WORDS = np.array(["low", "mid", "high"])
CASES: dict[str, Callable[[Path], Case]] = {
    "xgboost: two classes": xgb(_few(xgboost.XGBClassifier), lambda y: (y > 0).astype(int)),
    "xgboost: three classes": xgb(_few(xgboost.XGBClassifier)),
    "xgboost: labels only": xgb(_few(xgboost.XGBClassifier, objective="multi:softmax")),
    "xgboost: several labels a row": xgb(_few(xgboost.XGBClassifier), lambda y: np.stack([y > 0, y > 1], 1)),
    "xgboost: regression": xgb(_few(xgboost.XGBRegressor), lambda y: y * 1e3 - 7.0),
    "xgboost: two targets": xgb(_few(xgboost.XGBRegressor), lambda y: np.stack([y, -y], 1)),
    "xgboost: base score": xgb(_few(xgboost.XGBRegressor, base_score=0.25, objective="count:poisson")),
    "xgboost: DART": xgb(_few(xgboost.XGBClassifier, booster="dart", rate_drop=0.3)),
    "xgboost: linear": xgb(_few(xgboost.XGBRegressor, booster="gblinear")),
    "xgboost: random forest": xgb(lambda: xgboost.XGBRFClassifier(n_estimators=5, n_jobs=1)),
    "xgboost: stopped early": _xgb_early,
    "xgboost: ranking": _xgb_ranker,
    "xgboost: a value for none": _xgb_missing,
    "xgboost: categories": _xgb_categories,
    "xgboost: categories that are not ASCII": _xgb_letters,
    "xgboost: booster, logistic": _xgb_booster("binary:logistic"),
    "xgboost: booster, softmax": _xgb_booster("multi:softmax", num_class=3),
    "xgboost: booster, softprob": _xgb_booster("multi:softprob", num_class=3),
    "lightgbm: two classes": lgb(
        _quiet(lightgbm.LGBMClassifier), lambda y: np.array(["no", "yes"])[(y > 0) * 1]
    ),
    "lightgbm: three classes": lgb(_quiet(lightgbm.LGBMClassifier), lambda y: WORDS[y]),
    "lightgbm: whole numbers": lgb(_quiet(lightgbm.LGBMClassifier), lambda y: y * 10 - 7),
    "lightgbm: one against the rest": lgb(_quiet(lightgbm.LGBMClassifier, objective="multiclassova")),
    "lightgbm: regression": lgb(_quiet(lightgbm.LGBMRegressor)),
    "lightgbm: Poisson": lgb(_quiet(lightgbm.LGBMRegressor, objective="poisson")),
    "lightgbm: DART": lgb(_quiet(lightgbm.LGBMRegressor, boosting_type="dart")),
    "lightgbm: random forest": lgb(
        _quiet(lightgbm.LGBMRegressor, boosting_type="rf", subsample=0.7, subsample_freq=1)
    ),
    "lightgbm: linear trees": lgb(_quiet(lightgbm.LGBMRegressor, linear_tree=True)),
    "lightgbm: zero for none": lgb(_quiet(lightgbm.LGBMRegressor, zero_as_missing=True)),
    "lightgbm: ranking": lgb(_quiet(lightgbm.LGBMRanker), group=[10] * 40),
    "lightgbm: stopped early": _lgb_early,
    "lightgbm: categories": _lgb_categories,
    "lightgbm: booster, binary": _lgb_booster("binary"),
    "lightgbm: booster, three classes": _lgb_booster("multiclass", num_class=3),
}
