"""Runs in BentoML's environment; IRIS_MODEL names the model file."""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Iris:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["IRIS_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)
