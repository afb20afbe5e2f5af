"""LitServe with batching."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import envs
from benchmarks.peers import Serving, Target
from benchmarks.process import Started

TITLE = "LitServe, batched"
CONFIGURATION = (
    "litserve 0.2.19; one API server and one inference worker, max_batch_size 64, batch_timeout 1 ms, "
    "scikit-learn predict on the batch; access log off; one row as JSON"
)


def start(work: Path, port: int, core: int) -> Serving:
    """Start it; `work` receives the model fitted in the peer's environment."""
    bin_folder = envs.ensure("litserve_batch")
    work.mkdir(parents=True, exist_ok=True)
    model = envs.fit_iris(bin_folder, work / "model.joblib")
    process = Started(
        [str(bin_folder / "python"), str(Path(__file__).with_name("server.py")), str(port), str(model)],
        cores=core,
        log=work / "litserve.log",
        env={"PATH": f"{bin_folder}:/usr/bin:/bin"},
        cwd=work,
    )
    target = Target(
        f"http://127.0.0.1:{port}/predict",
        lambda row: json.dumps({"row": row}).encode(),
        lambda body: int(json.loads(body)["label"]),
    )
    return Serving(process, target)
