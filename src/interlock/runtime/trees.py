"""Reads the trees out of boosted models' files, whichever framework's, or says why ONNX cannot hold them.

Sources: XGBoost's JSON schema (doc/model.schema of its repository); LightGBM's text model (version v4).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from interlock.core.model import Array

LEAF = -1


class Inconvertible(Exception):
    """Why a model has no equal in ONNX, in words."""


class Tree(msgspec.Struct, frozen=True):
    """One tree, node by node; node 0 is the root.

    `feature` is LEAF at a leaf, and `value` then what it adds, elsewhere the threshold. `missing_left`: where
    a missing value goes.
    """

    group: int
    feature: Array
    value: Array
    left: Array
    right: Array
    missing_left: Array


class Forest(msgspec.Struct, frozen=True):
    """Trees that are added up in each group, from `base` on; then `transform`: none, sigmoid (of `scale`
    times the sum), softmax or exp. `inclusive`: a value equal to the threshold goes left."""

    trees: tuple[Tree, ...]
    base: tuple[float, ...]
    transform: str
    scale: float
    inclusive: bool
    datatype: str

    def thresholds(self) -> Array:
        """All pairs of feature and threshold, [n, 2] in float64."""
        found = [
            np.stack([tree.feature[inner], tree.value[inner].astype(np.float64)], axis=1)
            for tree in self.trees
            for inner in [tree.feature != LEAF]
        ]
        return np.concatenate([np.empty((0, 2)), *found])


_XGBOOST = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "reg:squarederror": "none",
    "reg:squaredlogerror": "none",
    "reg:absoluteerror": "none",
    "reg:quantileerror": "none",
    "reg:pseudohubererror": "none",
    "rank:ndcg": "none",
    "rank:pairwise": "none",
    "rank:map": "none",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}
_LIGHTGBM = {
    "binary": "sigmoid",
    "cross_entropy": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid",
    "regression": "none",
    "regression_l1": "none",
    "huber": "none",
    "fair": "none",
    "quantile": "none",
    "mape": "none",
    "lambdarank": "none",
    "rank_xendcg": "none",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
}


def xgboost_forest(model: bytes, iterations: int) -> Forest:
    """From XGBoost's JSON; `iterations`: how many of them count, 0 for all. Raises: Inconvertible."""
    learner = json.loads(model)["learner"]
    transform = _known(learner["objective"]["name"], _XGBOOST)
    booster = learner["gradient_booster"]
    drops = booster.get("weight_drop")
    booster = booster.get("gbtree", booster).get("model")
    if booster is None or "trees" not in booster:
        raise Inconvertible("it has no trees")
    count = len(booster["trees"])
    if iterations:
        count = int(booster["iteration_indptr"][iterations])
    trees = []
    for index in range(count):
        tree, group = booster["trees"][index], int(booster["tree_info"][index])
        if int(tree["tree_param"].get("size_leaf_vector", 0)) > 1:
            raise Inconvertible("a leaf holds several values")
        if any(tree["split_type"]):
            raise Inconvertible("it splits by categories")
        left = np.array(tree["left_children"], np.int64)
        leaf = left == LEAF
        value = np.array(tree["split_conditions"], np.float32)
        if drops is not None:
            value[leaf] *= np.float32(drops[index])
        trees.append(
            Tree(
                group,
                np.where(leaf, LEAF, np.array(tree["split_indices"], np.int64)),
                value,
                left,
                np.array(tree["right_children"], np.int64),
                np.array(tree["default_left"], np.int64) != 0,
            )
        )
    settings = learner["learner_model_param"]
    score = settings["base_score"]
    scores = json.loads(score) if score.startswith("[") else [float(score)]
    groups = max(int(settings["num_class"]), int(settings.get("num_target", "1")), 1)
    base = [_margin(value, transform) for value in scores] * (groups if len(scores) == 1 else 1)
    return Forest(tuple(trees), tuple(base), transform, 1.0, False, "FP32")


def lightgbm_forest(path: Path) -> Forest:
    """From a LightGBM text model. Raises: Inconvertible."""
    head, *blocks = path.read_text(errors="replace").split("\n\nTree=")
    fields = _fields(head)
    if "average_output" in head.split("\n"):
        raise Inconvertible("it is a random forest")
    name, *options = fields.get("objective", "none").split(" ")
    transform = _known(name, _LIGHTGBM)
    settings = dict(option.partition(":")[::2] for option in options)
    if "sqrt" in settings:
        raise Inconvertible("its objective takes the square root of the target")
    groups = int(fields["num_tree_per_iteration"])
    trees = tuple(_lightgbm_tree(_fields(text), at % groups) for at, text in enumerate(blocks))
    scale = float(settings.get("sigmoid", "1")) if transform == "sigmoid" else 1.0
    return Forest(trees, (0.0,) * groups, transform, scale, True, "FP64")


def _lightgbm_tree(fields: Mapping[str, str], group: int) -> Tree:
    if fields.get("is_linear", "0") != "0":
        raise Inconvertible("its leaves are linear models")
    if fields["num_cat"] != "0":
        raise Inconvertible("it splits by categories")
    leaves = np.array(fields["leaf_value"].split(), np.float64)
    inner = int(fields["num_leaves"]) - 1
    threshold = np.array(fields.get("threshold", "").split()[:inner], np.float64)
    decision = np.array(fields.get("decision_type", "").split()[:inner], np.int64)
    kind = decision >> 2 & 3  # how a node treats what is missing: 0 as zero, 1 zeros as missing too, 2 by NaN
    if np.any(kind == 1):
        raise Inconvertible("it takes zeros for missing values")

    def children(text: str) -> Array:
        # Leaf n is written as -1 - n; here leaves come after the inner nodes.
        found = np.array(fields.get(text, "").split()[:inner], np.int64)
        return np.concatenate([np.where(found < 0, inner - 1 - found, found), np.full(len(leaves), LEAF)])

    missing_left = np.where(kind == 2, decision & 2, threshold >= 0) != 0
    return Tree(
        group,
        np.concatenate(
            [np.array(fields.get("split_feature", "").split()[:inner], np.int64), np.full(len(leaves), LEAF)]
        ),
        np.concatenate([threshold, leaves]),
        children("left_child"),
        children("right_child"),
        np.concatenate([missing_left, np.zeros(len(leaves), np.bool_)]),
    )


def _fields(block: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in block.split("\n"))


def _known(objective: str, table: Mapping[str, str]) -> str:
    try:
        return table[objective]
    except KeyError:
        raise Inconvertible(f"its objective is {objective}; want one of {_words(sorted(table))}") from None


def _words(names: Sequence[str]) -> str:
    return ", ".join(names)


def _margin(score: float, transform: str) -> float:
    """XGBoost keeps the base score as it is after the transform."""
    if transform == "sigmoid":
        return math.log(score / (1.0 - score)) if 0.0 < score < 1.0 else math.nan
    if transform == "exp":
        return math.log(score) if score > 0.0 else math.nan
    return score
