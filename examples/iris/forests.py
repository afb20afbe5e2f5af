"""Decides which forests the demo releases by evidence: one that is live, and three that want to follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Verdict = Literal["done", "failed"]

_SOURCE = '''"""A random forest that is trained when it is loaded."""


class Forest:
    signature = {{
        "inputs": {{"input": ("FP32", [-1, 4])}},
        "outputs": {{"label": ("INT64", [-1]), "probabilities": ("FP32", [-1, 3])}},
    }}
    deterministic = True
    side_effect_free = True
    max_batch_rows = 32

    def load(self, folder):
        from sklearn.datasets import load_iris
        from sklearn.ensemble import RandomForestClassifier

        rows, labels = load_iris(return_X_y=True)
        self.forest = RandomForestClassifier({trees}, random_state={seed}).fit(rows, labels)

    def predict(self, inputs):
        rows = inputs["input"]
        width = rows[:, 1]
        if ((width > 0) & (width < {narrowest})).any():
            raise ValueError("a sepal is narrower than any that this version was made for")
        chances = self.forest.predict_proba(rows)
        return {{"label": chances.argmax(axis=1).astype("int64"), "probabilities": chances.astype("float32")}}
'''


class Forest(msgspec.Struct, frozen=True):
    """One version. `narrowest`: it raises for sepals below so many cm. `verdict`: how its release should
    end. `options`: of `interlock release`."""

    what: str
    trees: int
    seed: int = 0
    narrowest: float = 0.0
    verdict: Verdict = "done"
    options: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """The artifact: one Python file in `folder`."""
        path = folder / "forest.py"
        folder.mkdir(parents=True)
        path.write_text(_SOURCE.format(trees=self.trees, seed=self.seed, narrowest=self.narrowest))
        return path


LIVE = Forest("10 trees", 10)
CANDIDATES = (
    Forest("30 trees: three times as slow", 30, verdict="failed"),
    # 8 of the 150 irises, which the load sends in turn. Its reference data does not hold them. Its copies
    # would give it away: it gets requests at once, so that one sees who answers those that it fails.
    Forest(
        "fails on 5 % of the irises", 10, narrowest=2.35, verdict="failed", options=("--shadow-share", "0")
    ),
    Forest("10 other trees", 10, seed=1),
)
