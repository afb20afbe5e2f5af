"""Decides what the demo trains: two scikit-learn classifiers of the same irises, and the files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
TARGET = "species"

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


def irises() -> tuple[Rows, Labels]:
    """Fisher's 150 irises: four lengths in cm each ([150, 4]), and the species as 0, 1 or 2 ([150])."""
    from sklearn.datasets import load_iris

    rows, labels = load_iris(return_X_y=True)
    return rows.astype(np.float32), labels


def train(rows: Rows, labels: Labels) -> list[tuple[str, Any]]:
    """What is to be version 1 and version 2, fitted on what is not held out, each with what it is called."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    taken = ~is_held_out(len(rows))
    rows, labels = rows[taken], labels[taken]
    return [
        ("logistic regression", LogisticRegression(max_iter=1000).fit(rows, labels)),
        (
            "gradient boosting, 300 trees",
            GradientBoostingClassifier(random_state=0).fit(rows, labels),
        ),
    ]


class Files(msgspec.Struct, frozen=True):
    """What an engineer has after training: a joblib file of each model, and as Parquet files the rows that
    they were fitted on, and those held out."""

    models: tuple[Path, ...]
    data: Path
    holdout: Path


def is_held_out(rows: int) -> NDArray[np.bool_]:
    """Every third row: the species lie one after the other."""
    held: NDArray[np.bool_] = np.arange(rows) % 3 == 0
    return held


def write(folder: Path, models: list[tuple[str, Any]], rows: Rows, labels: Labels) -> Files:
    """Write the models, and the rows with their species in the column `TARGET`."""
    import joblib
    import pandas as pd

    folder.mkdir()
    paths = tuple(folder / f"iris-{number}.joblib" for number in range(1, len(models) + 1))
    for path, (_, model) in zip(paths, models, strict=True):
        joblib.dump(model, path)
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(**{TARGET: labels})
    data, holdout = folder / "train.parquet", folder / "holdout.parquet"
    held = is_held_out(len(frame))
    frame[~held].to_parquet(data)
    frame[held].to_parquet(holdout)
    return Files(paths, data, holdout)
