"""BentoML with a batchable API."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import envs
from benchmarks.peers import Serving, Target
from benchmarks.process import Started

TITLE = "BentoML, batchable"
CONFIGURATION = (
    "bentoml 1.4.39 (the newest that installed); one worker, batchable API (max_batch_size 64, "
    "max_latency_ms 60000, so that its dispatcher refuses nothing), scikit-learn predict on the batch; "
    "access log, metrics, tracing and usage tracking off; one row as JSON"
)


def start(work: Path, port: int, core: int) -> Serving:
    """Start it; `work` receives the model fitted in the peer's environment."""
    bin_folder = envs.ensure("bentoml_batch")
    work.mkdir(parents=True, exist_ok=True)
    model = envs.fit_iris(bin_folder, work / "model.joblib")
    process = Started(
        [str(bin_folder / "bentoml"), "serve", "service:Iris", "--host", "127.0.0.1", "--port", str(port)],
        cores=core,
        log=work / "bentoml.log",
        env={
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "BENTOML_HOME": str(work / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "IRIS_MODEL": str(model),
        },
        cwd=Path(__file__).parent,
    )
    target = Target(
        f"http://127.0.0.1:{port}/predict",
        lambda row: json.dumps({"rows": [row]}).encode(),
        lambda body: int(json.loads(body)[0]),
    )
    return Serving(process, target)
