"""What a team writes first: FastAPI around scikit-learn's predict."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import envs
from benchmarks.peers import Serving, Target
from benchmarks.process import Started

TITLE = "FastAPI + scikit-learn"
CONFIGURATION = (
    "fastapi 0.165 on uvicorn 0.54 (uvloop, httptools), one worker, access log off; a `def` endpoint "
    "(FastAPI runs it in its thread pool, the documented way for blocking code) with a pydantic body, "
    "scikit-learn predict row by row"
)


def start(work: Path, port: int, core: int) -> Serving:
    """Start it; `work` receives the model fitted in the peer's environment."""
    bin_folder = envs.ensure("fastapi_naive")
    work.mkdir(parents=True, exist_ok=True)
    model = envs.fit_iris(bin_folder, work / "model.joblib")
    argv = [str(bin_folder / "uvicorn"), "app:app", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--workers", "1", "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    process = Started(
        [*argv, "--log-level", "warning", "--app-dir", str(Path(__file__).parent)],
        cores=core,
        log=work / "fastapi.log",
        env={"PATH": f"{bin_folder}:/usr/bin:/bin", "IRIS_MODEL": str(model)},
        cwd=work,
    )
    target = Target(
        f"http://127.0.0.1:{port}/predict",
        lambda row: json.dumps({"row": row}).encode(),
        lambda body: int(json.loads(body)["label"]),
    )
    return Serving(process, target)
