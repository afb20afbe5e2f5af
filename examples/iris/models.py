"""Decides what the demo trains: two scikit-learn classifiers of the same irises, version 1 and version 2."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


def irises() -> tuple[Rows, Labels]:
    """Fisher's 150 irises: four lengths in cm each ([150, 4]), and the species as 0, 1 or 2 ([150])."""
    from sklearn.datasets import load_iris

    rows, labels = load_iris(return_X_y=True)
    return rows.astype(np.float32), labels


def train(rows: Rows, labels: Labels) -> list[tuple[str, Any]]:
    """What is to be version 1 and version 2, fitted, each with what it is called."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    return [
        ("logistic regression", LogisticRegression(max_iter=1000).fit(rows, labels)),
        (
            "gradient boosting, 300 trees",
            GradientBoostingClassifier(random_state=0).fit(rows, labels),
        ),
    ]
