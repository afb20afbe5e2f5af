"""Holds converted boosted models to their answers, and the choice of backends to the artifact."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from interlock.core.errors import CheckFailed
from interlock.core.model import Signature, Version
from interlock.runtime import boosted_prepare, by_rows, lightgbm, onnx, xgboost
from interlock.runtime.boosted_prepare import prepare, trials
from interlock.runtime.catalog import runtime_of
from interlock.runtime.examples import difference
from interlock.runtime.trees import Inconvertible, lightgbm_forest, xgboost_forest
from interlock.runtime.trees_onnx import to_onnx
from tests.runtime.boosters import CASES, numbers

KEPT = {
    "xgboost: labels only": "objective is multi:softmax",
    "xgboost: several labels a row": "several labels a row",
    "xgboost: linear": "it has no trees",
    "xgboost: a value for none": "takes -999 for a missing value",
    "xgboost: categories": "columns of categories",
    "xgboost: categories that are not ASCII": "columns of categories",
    "xgboost: booster, softmax": "objective is multi:softmax",
    "lightgbm: random forest": "it is a random forest",
    "lightgbm: linear trees": "its leaves are linear models",
    "lightgbm: zero for none": "takes zeros for missing values",
    "lightgbm: categories": "columns of categories",
}


def converted(name: str, folder: Path) -> tuple[Version, Any]:
    case = CASES[name](folder)
    version = case.version
    booster: Any = (xgboost if version.runtime == "xgboost" else lightgbm).Booster(
        folder / version.entry, version.options
    )
    try:
        if version.runtime == "xgboost":
            forest = xgboost_forest(booster.as_json(), booster.iterations)
        else:
            forest = lightgbm_forest(folder / version.entry)
        signature = runtime_of(version.runtime).inspect(folder, version, None)  # type: ignore[attr-defined]
        (folder / "model.onnx").write_bytes(to_onnx(forest, signature, booster.shape.classes))
    finally:
        booster.close()
    return version, forest


@pytest.mark.parametrize("name", [name for name in CASES if name not in KEPT])
def test_the_graph_answers_as_the_trees_do_at_their_thresholds_too(name: str, tmp_path: Path) -> None:
    version, forest = converted(name, tmp_path)
    assert len(forest.trees) >= 7 or "forest" in name or "early" in name or "ranking" in name
    native = runtime_of(version.runtime).load(tmp_path, version)
    graph = onnx.runtime.load(tmp_path, msgspec.structs.replace(version, entry="model.onnx"))
    rows = trials(
        numbers()[0],
        forest,
        np.dtype(forest.datatype.replace("FP", "f").replace("32", "4").replace("64", "8")),
    )
    kept, made = native.predict({"input": rows}), graph.predict({"input": rows})
    assert difference(made, kept) <= 1e-5
    assert {key: value.dtype for key, value in made.items()} == {
        key: value.dtype for key, value in kept.items()
    }
    native.close()
    graph.close()


def test_values_rounded_to_32_bits_would_take_other_branches(tmp_path: Path) -> None:
    """Why the graph of a LightGBM model takes 64-bit numbers: the trials would find that it did not."""
    version, forest = converted("lightgbm: regression", tmp_path)
    rows = trials(numbers()[0], forest, np.dtype(np.float64))
    graph = onnx.runtime.load(tmp_path, msgspec.structs.replace(version, entry="model.onnx"))
    rounded = rows.astype(np.float32).astype(np.float64)
    assert difference(graph.predict({"input": rounded}), graph.predict({"input": rows})) > 1e-3
    graph.close()


@pytest.mark.parametrize("name", KEPT)
def test_what_onnx_cannot_hold_is_kept_and_the_report_says_why(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    case = CASES[name](tmp_path)
    data = case.inputs if "input" in case.inputs else {key: array[:, 0] for key, array in case.inputs.items()}
    made = prepare(tmp_path, case.version, data, tmp_path / "out")
    assert made.conversion is not None and not made.conversion.converted
    assert KEPT[name] in made.conversion.reason
    assert (made.runtime, made.entry) == (case.version.runtime, case.version.entry)
    assert "onnx" not in made.options
    assert [path.name for path in (tmp_path / "out").iterdir()] == [case.version.entry]


def measured(rows: by_rows.Rows | None) -> Any:
    """Times under which ONNX is worth it for these batches."""

    def race(*_: Any) -> tuple[dict[int, float], dict[int, float]]:
        native = dict.fromkeys(by_rows.MEASURED_ROWS, 1.0)
        won = [n for n in native if rows and rows[0] <= n and (rows[1] is None or n <= rows[1])]
        return native, {count: 0.5 if count in won else 2.0 for count in native}

    return race


@pytest.mark.parametrize("chosen", [by_rows.ALL, (1, 64), (8, None), None])
@pytest.mark.parametrize("name", ["xgboost: two classes", "lightgbm: three classes"])
def test_the_artifact_holds_the_backends_that_were_faster(
    name: str, chosen: by_rows.Rows | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    case = CASES[name](tmp_path)
    monkeypatch.setattr(boosted_prepare, "race", measured(chosen))
    made = prepare(tmp_path, case.version, {"*": case.inputs["input"]}, out)
    files = sorted(path.name for path in out.iterdir())
    native = case.version.entry
    assert files == {by_rows.ALL: ["model.onnx"], None: [native]}.get(chosen, sorted(["model.onnx", native]))
    assert made.conversion is not None and made.conversion.converted == (chosen == by_rows.ALL)
    assert made.runtime == ("onnx" if chosen == by_rows.ALL else case.version.runtime)
    draft = Version("m", "1", "", made.runtime, made.entry, Signature((), ()), options=made.options)
    loaded = runtime_of(made.runtime).load(out, draft)
    assert isinstance(loaded, by_rows.ByRows) == (chosen not in (by_rows.ALL, None))
    for rows in (1, 8, 100, 400):
        inputs = {"input": case.inputs["input"][:rows]}
        wanted = {key: value[:rows] for key, value in case.wanted.items()}
        assert difference(loaded.predict(inputs), wanted) <= 1e-5
    loaded.close()


def test_a_graph_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    case = CASES["lightgbm: regression"](tmp_path)

    def wrong(path: Path) -> Any:
        forest = lightgbm_forest(path)
        return msgspec.structs.replace(forest, inclusive=False)  # differs at the thresholds alone

    monkeypatch.setattr(boosted_prepare, "lightgbm_forest", wrong)
    made = prepare(tmp_path, case.version, {"*": case.inputs["input"]}, out)
    assert made.conversion is not None and "differs by up to" in made.conversion.reason
    assert made.runtime == "lightgbm" and "onnx" not in made.options


@pytest.mark.parametrize("name", ["xgboost: two classes", "lightgbm: three classes"])
def test_a_conversion_that_was_given_up_is_not_tried(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    case = CASES[name](tmp_path)
    data = {"*": case.inputs["input"]}
    made = prepare(tmp_path, case.version, data, tmp_path / "out", lambda: "it was given up")
    assert made.conversion is not None and not made.conversion.converted
    assert made.conversion.reason.startswith("kept as ") and made.conversion.reason.endswith("given up")
    assert made.runtime == case.version.runtime and "onnx" not in made.options
    assert [path.name for path in (tmp_path / "out").iterdir()] == [case.version.entry]


def test_data_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    case = CASES["lightgbm: booster, binary"](tmp_path)
    with pytest.raises(CheckFailed, match="have 5 columns; the model wants 6"):
        prepare(tmp_path, case.version, {"*": np.zeros((20, 5))}, out)
    table = {"columns": [[name, "FP64"] for name in "abcdx"]}
    draft = msgspec.structs.replace(case.version, options={"table": table})
    with pytest.raises(CheckFailed, match=r"have no \['e', 'f'\]"):
        prepare(tmp_path, draft, {name: np.zeros(20) for name in "abcdx"}, out)


def test_an_objective_that_is_not_known_is_named() -> None:
    with pytest.raises(Inconvertible, match="its objective is my:own; want one of"):
        xgboost_forest(b'{"learner": {"objective": {"name": "my:own"}}}', 0)
