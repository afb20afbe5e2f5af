"""Run by .venv-models: CatBoost's models, held to what the package answers; the contract suite; a node."""

import sys
from pathlib import Path
from typing import Any

import catboost
import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from interlock.core.errors import CheckFailed, InterlockError, LoadFailed
from interlock.core.model import Placement, Signature, Tensors, Version
from interlock.operations import reference
from interlock.operations.context import opened
from interlock.operations.register import register
from interlock.runtime.catalog import runtime_of
from interlock.runtime.check import check
from interlock.runtime.prepare import Prepared, prepare
from tests.app.nodes import RunningNode
from tests.runtime.boosters import WORDS, columns_of, frame, numbers

HOW = {"iterations": 20, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
X, Y = numbers()
ROWS = X.astype(np.float32)


def version(runtime: str, entry: str, **options: Any) -> Version:
    return Version("m", "1", "sha256:" + "0" * 64, runtime, entry, Signature((), ()), options=options)


def cat(folder: Path, model: Any, name: str, **options: Any) -> Any:
    model.save_model(str(folder / name))
    return runtime_of("catboost").load(folder, version("catboost", name, **options))


def hold(found: Tensors, wanted: Tensors) -> None:
    """To the bit."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape and np.array_equal(found[name], array), name


def answers(desk: Path) -> None:
    """Labels of text, a count, categories; each contract is kept."""
    model = catboost.CatBoostClassifier(**HOW).fit(ROWS, WORDS[Y])
    wanted = {"label": model.predict(ROWS)[:, 0].astype(object), "probabilities": model.predict_proba(ROWS)}
    hold(cat(desk, model, "c.cbm").predict({"input": ROWS}), wanted)
    report = check(desk, version("catboost", "c.cbm"))
    assert report.failures == () and report.placement is Placement.EXECUTOR, report
    assert report.capabilities.batchable
    model = catboost.CatBoostRegressor(loss_function="Poisson", **HOW).fit(ROWS, Y)
    loaded = cat(desk, model, "r.cbm", kind="CatBoostRegressor")
    hold(loaded.predict({"input": ROWS}), {"prediction": model.predict(ROWS)[:, None]})
    data, labels = town_frame()
    model = catboost.CatBoostClassifier(**HOW).fit(data, labels, cat_features=["town", "plan"])
    loaded = cat(desk, model, "t.cbm")
    inputs = columns_of(data)
    inputs["plan"] = np.array([str(value).encode() for value in data["plan"]], object)[:, None]
    inputs["income"] = inputs["income"].astype(np.float32)
    assert np.array_equal(loaded.predict(inputs)["probabilities"], model.predict_proba(data))
    report = check(desk, version("catboost", "t.cbm"), inputs)
    assert report.failures == (), report.failures
    inputs["town"][0, 0] = b"\xff"
    refused(lambda: loaded.predict(inputs), InterlockError, "'town': a category is missing")
    (desk / "broken.cbm").write_bytes((desk / "c.cbm").read_bytes()[:-99])
    refused(
        lambda: runtime_of("catboost").load(desk, version("catboost", "broken.cbm")),
        LoadFailed,
        "CatBoost cannot load broken.cbm",
    )


def onnx(desk: Path) -> None:
    """What becomes ONNX answers the same, gaps and labels too; what cannot is kept, and says why."""
    for name, model, options in (
        ("two", catboost.CatBoostClassifier(**HOW).fit(ROWS, np.array(["no", "yes"])[(Y > 0) * 1]), {}),
        ("three", catboost.CatBoostClassifier(**HOW).fit(ROWS, Y * 10), {}),
        ("words", catboost.CatBoostClassifier(**HOW).fit(ROWS, WORDS[Y]), {}),
        ("number", catboost.CatBoostRegressor(**HOW).fit(ROWS, Y), {"kind": "CatBoostRegressor"}),
    ):
        kept = cat(folder_of(desk, name), model, "model.cbm", **options)
        made = prepared(desk, name, ROWS, **options)
        assert made.runtime == "onnx" and made.conversion is not None, (name, made.conversion)
        report = made.conversion
        assert report.converted and report.rows >= 4000 and (report.difference or 0.0) <= 1e-5, report
        assert all(report.onnx_s[rows] < report.kept_s[rows] for rows in (1, 32)), report
        draft = version(made.runtime, made.entry, **made.options)
        checked = check(desk / name / "out", draft)
        assert checked.failures == () and checked.placement is not Placement.EXECUTOR, checked
        found = runtime_of("onnx").load(desk / name / "out", draft).predict({"input": ROWS})
        wanted = kept.predict({"input": ROWS})
        assert found.keys() == wanted.keys()
        for output, array in wanted.items():
            assert found[output].shape == array.shape, output
            if output == "label":
                assert texts(found[output]) == texts(array)
            else:
                np.testing.assert_allclose(found[output], array, atol=1e-5)
    poisson = catboost.CatBoostRegressor(loss_function="Poisson", **HOW).fit(ROWS, Y)
    two = catboost.CatBoostRegressor(loss_function="MultiRMSE", **HOW).fit(ROWS, np.stack([Y, -Y], 1))
    truth = catboost.CatBoostClassifier(**HOW).fit(ROWS, Y > 0)
    for name, model, said in (
        ("poisson", poisson, "ONNX differs in prediction by up to"),
        ("targets", two, "CatBoost writes another kind of model"),
        ("truth", truth, "it cannot be converted to ONNX"),
    ):
        kind = type(model).__name__
        cat(folder_of(desk, name), model, "model.cbm", kind=kind)
        made = prepared(desk, name, ROWS, kind=kind)
        assert (
            made.runtime == "catboost" and made.conversion is not None and said in made.conversion.reason
        ), made
        assert [path.name for path in (desk / name / "out").iterdir()] == ["model.cbm"]
    draft, stopped = version("catboost", "model.cbm", kind="CatBoostRegressor"), folder_of(desk, "stopped")
    cat(stopped, poisson, draft.entry, kind="CatBoostRegressor")
    made = prepare(stopped, draft, {"*": ROWS}, stopped / "out", lambda: "it was given up")
    assert made.conversion is not None and made.conversion.reason == "kept as CatBoost: it was given up"
    refused(lambda: prepared(desk, "poisson", ROWS[:, :5]), CheckFailed, "have 5 columns")


def served(desk: Path) -> None:
    """Each kind is registered, released and answers over V2: ONNX in the worker, CatBoost in its executor."""
    numeric = catboost.CatBoostClassifier(**HOW).fit(ROWS, WORDS[Y])
    data, labels = town_frame()
    mixed = catboost.CatBoostClassifier(**HOW).fit(data, labels, cat_features=["town", "plan"])
    numeric.save_model(str(desk / "model.cbm"))
    np.savez(desk / "rows.npz", input=ROWS)
    home = desk / "home"
    with opened(home) as ctx:
        rows = reference.read(desk / "rows.npz", None)
        made = register(ctx, "numeric", desk / "model.cbm", data=rows)
        assert made.version.runtime == "onnx", made.conversion
        made = register(ctx, "file", desk / "model.cbm")
        assert made.version.placement is Placement.EXECUTOR
        made = register(ctx, "mixed", mixed, data=reference.of(data.astype({"plan": str})))
        assert made.version.placement is Placement.EXECUTOR
        assert made.conversion is not None and "categories" in made.conversion.reason
    with RunningNode(home) as node:
        node.wait_ready()
        for name in ("numeric", "file", "mixed"):
            assert node.release(name, "1").state == "done"
        with InferenceServerClient(f"127.0.0.1:{node.node.http_port}") as client:
            for name in ("numeric", "file"):
                for count in (1, 40):
                    sent = InferInput("input", [count, 6], "FP32")
                    sent.set_data_from_numpy(ROWS[:count])
                    answer = client.infer(name, [sent])
                    given = ROWS[:count]
                    found = answer.as_numpy("probabilities")
                    np.testing.assert_allclose(found, numeric.predict_proba(given), atol=1e-5)
                    assert texts(answer.as_numpy("label")) == texts(np.ravel(numeric.predict(given)))
            columns = []
            for name in data.columns:
                is_text = name in ("town", "plan")
                values = data[name].astype(object if is_text else np.float32).to_numpy()[:, None]
                if is_text:
                    values = np.array([[str(value[0]).encode()] for value in values], object)
                columns.append(InferInput(name, list(values.shape), "BYTES" if is_text else "FP32"))
                columns[-1].set_data_from_numpy(values)
            found = client.infer("mixed", columns).as_numpy("probabilities")
            np.testing.assert_allclose(found, mixed.predict_proba(data))


def town_frame() -> tuple[Any, Any]:
    """As `frame`, with nothing missing where CatBoost wants a category."""
    data, labels = frame()
    data["town"] = data["town"].astype(object).fillna("none")
    data["plan"] = data["plan"].astype(int)
    return data, labels


def folder_of(desk: Path, name: str) -> Path:
    (desk / name / "out").mkdir(parents=True)
    return desk / name


def prepared(desk: Path, name: str, rows: Any, **options: Any) -> Prepared:
    folder = desk / name
    return prepare(folder, version("catboost", "model.cbm", **options), {"*": rows}, folder / "out")


def texts(labels: Any) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in labels.tolist()]


def refused(call: Any, kind: type[Exception], said: str) -> None:
    try:
        call()
    except kind as error:
        assert said in str(error), error
    else:
        raise AssertionError(f"not refused: {said}")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
