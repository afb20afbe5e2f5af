"""MLServer with its scikit-learn runtime and adaptive batching."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import envs
from benchmarks.peers import Serving, Target, v2_body, v2_label
from benchmarks.process import Started, free_port

TITLE = "MLServer 1.7, sklearn"
CONFIGURATION = (
    "mlserver 1.7.1 with mlserver-sklearn; adaptive batching (max_batch_size 64, max_batch_time 1 ms), "
    "parallel_workers 1 (its default, and the fastest of what was tried), uvloop 0.21 (with 0.23 that worker "
    "does not start), metrics off, debug off; V2 REST, same request body as Interlock"
)


def start(work: Path, port: int, core: int) -> Serving:
    """Start it; `work` receives settings and the model fitted in the peer's environment."""
    bin_folder = envs.ensure("mlserver_sklearn")
    work.mkdir(parents=True, exist_ok=True)
    envs.fit_iris(bin_folder, work / "model.joblib")
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 1,
    }
    model = {
        "name": "iris",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
        "parameters": {"uri": "./model.joblib"},
    }
    (work / "settings.json").write_text(json.dumps(settings))
    (work / "model-settings.json").write_text(json.dumps(model))
    process = Started(
        [str(bin_folder / "mlserver"), "start", str(work)],
        cores=core,
        log=work / "mlserver.log",
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
    )
    return Serving(process, Target(f"http://127.0.0.1:{port}/v2/models/iris/infer", v2_body, v2_label))
