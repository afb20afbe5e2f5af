"""A real node serves XGBoost and LightGBM to the client that most have."""

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from tritonclient.http import InferenceServerClient, InferInput

from interlock.core.model import Placement
from interlock.operations import reference
from interlock.operations.context import opened
from interlock.operations.register import register
from tests.app.nodes import RunningNode
from tests.runtime.boosters import WORDS, columns_of, frame, numbers

pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow]


def test_boosted_models_are_served_as_their_packages_answer(home_with_store: Path) -> None:
    X, y = numbers(300)
    rows = X.astype(np.float32)
    data, answers = frame(300)
    models: dict[str, Any] = {
        "xgb": (xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(rows, y), rows),
        "lgb": (lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(X, WORDS[y]), X),
    }
    categories = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(data, answers)
    with opened(home_with_store) as ctx:
        for name, (model, _) in models.items():
            made = register(ctx, name, model)
            assert made.version.placement is not Placement.EXECUTOR
        register(ctx, "towns", categories, data=reference.of(data))
    with RunningNode(home_with_store) as node:
        node.wait_ready()
        for name in (*models, "towns"):
            assert node.release(name, "1").state == "done"
        with InferenceServerClient(f"127.0.0.1:{node.node.http_port}") as client:
            for name, (model, given) in models.items():
                datatype = "FP32" if given.dtype == np.float32 else "FP64"
                for count in (1, 40):
                    sent = InferInput("input", [count, 6], datatype)
                    sent.set_data_from_numpy(given[:count])
                    answer = client.infer(name, [sent])
                    assert np.allclose(answer.as_numpy("probabilities"), model.predict_proba(given[:count]))
                    labels = [
                        item.decode() if isinstance(item, bytes) else item
                        for item in answer.as_numpy("label").tolist()
                    ]
                    assert labels == np.ravel(model.predict(given[:count])).tolist()
            sent_columns = []
            for name, values in columns_of(data).items():
                datatype = {"age": "INT64", "income": "FP64", "town": "BYTES", "plan": "FP64"}[name]
                values = values.astype(np.int64) if name == "age" else values
                column = InferInput(name, list(values.shape), datatype)
                column.set_data_from_numpy(values)
                sent_columns.append(column)
            answer = client.infer("towns", sent_columns)
            assert np.allclose(answer.as_numpy("probabilities"), categories.predict_proba(data))
