"""Holds the metrics to scikit-learn's over random cases, and their reasons where there is none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as golden

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.quality import HIGHER_IS_BETTER, evaluate, per_row_loss

NAMES = [np.array(["ant", "bee", "cat", "dog"]), np.array([0, 1, 2, 3]), np.array([3, 5, 8, 13])]


def texts(values: Array) -> Array:
    """As a model answers them: BYTES."""
    made = np.empty(len(values), object)
    made[:] = [str(value).encode() for value in values.tolist()]
    return made


@st.composite
def classified(draw: st.DrawFn, least: int = 2) -> tuple[Array, Array, Array, Array]:
    """Classes, a target in which each occurs, labels, and probabilities with many ties."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(least, 4))
    rows = draw(st.integers(count, 60))
    names = draw(st.sampled_from(NAMES))[:count]
    target = names[np.concatenate([np.arange(count), random.integers(0, count, rows - count)])]
    raw = random.integers(1, draw(st.sampled_from([3, 1000])), (rows, count)).astype(float)
    scores = (raw / raw.sum(axis=1, keepdims=True)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return names, target, names[scores.argmax(axis=1)], scores


@given(classified())
def test_classifiers_have_scikit_learns_metrics(case: tuple[Array, Array, Array, Array]) -> None:
    names, target, labels, scores = case
    answered = texts(labels) if labels.dtype.kind == "U" else labels
    found = evaluate(target, {"label": answered, "probabilities": scores})
    assert (found.task, found.rows, found.absent) == ("classification", len(target), {})
    two = len(names) == 2
    wanted = {
        "accuracy": golden.accuracy_score(target, labels),
        "log_loss": golden.log_loss(target, scores, labels=names),
        "roc_auc": golden.roc_auc_score(target, scores[:, 1])
        if two
        else golden.roc_auc_score(target, scores, multi_class="ovr", labels=names),
        "brier": golden.brier_score_loss(target, scores[:, 1], pos_label=names[1])
        if two
        else ((scores.astype(float) - (target[:, None] == names)) ** 2).sum(axis=1).mean(),
    }
    assert found.metrics == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    for metric in ("log_loss", "brier"):
        loss = per_row_loss(metric, target, {"label": answered, "probabilities": scores})
        assert loss.shape == target.shape and loss.mean() == pytest.approx(wanted[metric], rel=1e-5)
    wrong = per_row_loss("accuracy", target, {"label": answered, "probabilities": scores})
    assert wrong.tolist() == (target != labels).astype(float).tolist()


@given(classified(least=3))
def test_more_than_two_classes_have_scikit_learns_brier_score(
    case: tuple[Array, Array, Array, Array],
) -> None:
    names, target, labels, scores = case
    found = evaluate(target, {"l": texts(labels) if labels.dtype.kind == "U" else labels, "p": scores})
    wanted = golden.brier_score_loss(target, scores, labels=names)
    assert found.metrics["brier"] == pytest.approx(wanted, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([(-1,), (-1, 1)]))
def test_regressors_have_scikit_learns_metrics(seed: int, rows: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    target = random.normal(size=rows) * 10 + 2
    values = target + random.normal(size=rows)
    found = evaluate(target, {"prediction": values.reshape(shape)})
    wanted = {
        "rmse": golden.root_mean_squared_error(target, values),
        "mae": golden.mean_absolute_error(target, values),
        "r2": golden.r2_score(target, values),
    }
    assert (found.task, found.absent) == ("regression", {})
    assert found.metrics == pytest.approx(wanted)
    losses = per_row_loss("rmse", target, {"y": values.reshape(shape)})
    assert np.sqrt(losses.mean()) == pytest.approx(wanted["rmse"])
    assert per_row_loss("mae", target, {"y": values}).mean() == pytest.approx(wanted["mae"])


def test_each_metric_says_which_way_is_better() -> None:
    both = (
        evaluate(np.array([0, 1]), {"p": np.array([0.2, 0.9])}),
        evaluate(np.array([0.5, 1.5]), {"p": np.array([0.2, 0.9])}),
    )
    assert {*both[0].metrics, *both[1].metrics} == set(HIGHER_IS_BETTER)


def test_a_probability_of_one_is_what_boosters_answer() -> None:
    target, scores = np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.4, 0.6], np.float32)
    found = evaluate(target, {"output": scores})
    assert found.task == "classification" and found.metrics["accuracy"] == 0.5
    assert found.metrics["roc_auc"] == golden.roc_auc_score(target, scores)
    assert found.metrics["log_loss"] == pytest.approx(golden.log_loss(target, scores.astype(float)))
    assert evaluate(target, {"output": scores * 2 - 1}).task == "regression"
    assert evaluate(target + 0.5, {"output": scores}).task == "regression"


def test_a_target_of_one_class_only() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = evaluate(np.array([1, 1]), {"label": np.array([0, 1]), "probabilities": scores})
    assert found.metrics == pytest.approx(
        {"accuracy": 0.5, "log_loss": -np.log([0.1, 0.8]).mean(), "brier": (0.81 + 0.04) / 2}
    )
    assert found.absent == {"roc_auc": "no row is of class 0"}
    texts_only = evaluate(np.array(["x", "x"]), {"l": np.array([b"x", b"x"], object), "p": scores})
    assert texts_only.absent["all"].endswith("which column is which cannot be told")
    named = evaluate(np.array(["x", "x"]), {"l": np.array([b"x", b"x"], object), "p": scores}, ["x", "y"])
    assert named.metrics["accuracy"] == 1.0 and named.absent == {"roc_auc": "no row is of class 'y'"}


def test_labels_alone_have_an_accuracy() -> None:
    found = evaluate(np.array(["a", "b"], object), {"label": np.array([b"a", b"a"], object)})
    assert found.metrics == {"accuracy": 0.5}
    assert set(found.absent) == {"log_loss", "roc_auc", "brier"}
    assert found.absent["brier"] == "the model answers labels, no probabilities"
    # CSV files make numbers of what the model was taught as texts.
    assert evaluate(np.array([0, 1]), {"label": np.array([b"0", b"1"], object)}).metrics["accuracy"] == 1.0
    assert evaluate(np.array([True, False]), {"label": np.array([1, 0])}).metrics["accuracy"] == 1.0


def test_scores_that_are_no_probabilities_rank_nothing() -> None:
    found = evaluate(np.array([0, 1]), {"logits": np.array([[3.0, -1.0], [0.5, 2.0]])})
    assert found.metrics == {"accuracy": 1.0}
    assert "no probabilities" in found.absent["log_loss"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_said(bad: float) -> None:
    scores = np.array([[0.9, 0.1], [bad, 0.8]])
    found = evaluate(np.array([0, 1]), {"label": np.array([0, 1]), "probabilities": scores})
    assert found.metrics == {"accuracy": 1.0}
    assert found.absent["roc_auc"] == "row 1 has a probability that is no number"
    with pytest.raises(ConfigError, match="'log_loss' cannot be computed: row 1 has a probability"):
        per_row_loss("log_loss", np.array([0, 1]), {"l": np.array([0, 1]), "p": scores})
    values = evaluate(np.array([0.5, 1.0]), {"y": np.array([1.0, bad])})
    assert values.metrics == {} and "row 1 has the answer" in values.absent["rmse"]


@pytest.mark.parametrize(
    ("target", "outputs", "said"),
    [
        (np.array([1.0, np.nan]), {"y": np.zeros(2)}, "1 of 2 rows have no answer"),
        (np.array(["a", None], object), {"y": np.zeros(2, int)}, "1 of 2 rows have no answer"),
        (np.zeros(3), {"y": np.zeros(2)}, "rows, the target 3"),
        (np.zeros(0), {"y": np.zeros(0)}, "no rows"),
        (np.zeros((2, 2)), {"y": np.zeros(2)}, "one answer a row"),
        (np.zeros(2), {}, "rows, the target 2"),
        (np.zeros(2), {"y": np.zeros((2, 0))}, "hold no label"),
        (np.array([0.5, 1]), {"a": np.zeros(2), "b": np.zeros(2)}, "answers 2 values a row"),
        (np.array(["x", "y"]), {"y": np.array([0, 1])}, "are texts"),
        (np.array(["x", "y"]), {"y": np.array([0.5, 1])}, "are texts"),
        (np.zeros(2), {"a": np.zeros(2, int), "b": np.zeros(2, int)}, "2 outputs could be the label"),
    ],
)
def test_what_cannot_be_compared_says_why(target: Array, outputs: dict[str, Any], said: str) -> None:
    found = evaluate(target, outputs)
    assert found.metrics == {} and said in found.absent["all"]
    with pytest.raises(ConfigError, match="cannot be computed"):
        per_row_loss("accuracy", target, outputs)


@pytest.mark.parametrize("metric", ["roc_auc", "r2", "f1"])
def test_what_is_no_mean_over_rows_has_no_loss(metric: str) -> None:
    with pytest.raises(ConfigError, match="want one of accuracy, log_loss, brier, rmse, mae"):
        per_row_loss(metric, np.array([0, 1]), {"y": np.array([0, 1])})


def test_a_metric_of_the_other_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="those of a regression; it has rmse, mae, r2"):
        per_row_loss("accuracy", np.array([0.5, 1]), {"y": np.array([0.5, 1])})


def test_a_constant_target_has_no_r2() -> None:
    found = evaluate(np.full(3, 7.5), {"y": np.array([7.5, 7.0, 8.0])})
    assert found.absent == {"r2": "the target is the same in every row"} and found.metrics["mae"] > 0
