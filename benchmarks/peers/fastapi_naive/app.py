"""Runs in FastAPI's environment; IRIS_MODEL names the model file."""

import os

import joblib
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(os.environ["IRIS_MODEL"])


class Row(BaseModel):
    row: list[float]


@app.post("/predict")
def predict(body: Row):
    return {"label": int(model.predict([body.row])[0])}


@app.post("/predict_async")
async def predict_async(body: Row):
    return {"label": int(model.predict([body.row])[0])}
