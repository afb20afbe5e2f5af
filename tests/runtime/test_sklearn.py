"""Holds scikit-learn models as they are kept to what the estimator itself answers."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interlock.runtime.sklearn import LABEL, PROBABILITIES, SklearnModel, labels_by_vote, signature_of


class Contrary(RandomForestClassifier):  # type: ignore[misc]
    """A forest that predicts the least likely class."""

    def predict(self, X: Any) -> Any:
        return self.classes_.take(np.argmin(self.predict_proba(X), axis=1))


FOREST = RandomForestClassifier(2, max_depth=1, random_state=0)  # two trees: there are ties
ROWS = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
TEXTS = np.where(ROWS[:, 0] > 0, np.where(ROWS[:, 1] > 0, "ja", "nein"), "vielleicht")


@pytest.mark.parametrize(
    ("estimator", "votes"),
    [
        (FOREST, True),
        (make_pipeline(StandardScaler(), ExtraTreesClassifier(2, max_depth=1, random_state=0)), True),
        (Contrary(2, max_depth=1, random_state=0), False),
        (make_pipeline(StandardScaler(), LogisticRegression()), False),
    ],
)
def test_labels_are_those_of_the_estimator(estimator: Any, votes: bool) -> None:
    estimator.fit(ROWS, TEXTS)
    model = SklearnModel(estimator, signature_of(estimator, {"input": ROWS}, "FP32"))
    assert labels_by_vote(estimator) is votes
    found = model.predict({"input": ROWS})
    assert found[LABEL].tolist() == estimator.predict(ROWS).tolist()
    assert found[PROBABILITIES].tolist() == estimator.predict_proba(ROWS).astype(np.float32).tolist()
    assert model.predict({"input": ROWS}, (LABEL,)).keys() == {LABEL}


def test_a_forest_is_asked_once_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = RandomForestClassifier(2, random_state=0).fit(ROWS, TEXTS)
    model = SklearnModel(forest, signature_of(forest, {"input": ROWS}, "FP32"))
    monkeypatch.setattr(forest, "predict", None)
    assert set(model.predict({"input": ROWS})) == {LABEL, PROBABILITIES}
