"""KServe's InferenceRESTClient, in its own environment, against a real server."""

import json
import subprocess
from pathlib import Path

import numpy as np

from tests.wire.direct import iris, serving
from tests.wire.node import running

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [1.0, 2.0, 3.0, 4.0]], np.float32)


def test_kserves_client_asks_for_health_and_infers_in_json_and_binary(kserve_python: Path) -> None:
    script = Path(__file__).with_name("kserve_calls.py")
    with running(serving()) as node:
        done = subprocess.run(
            [kserve_python, script, f"http://127.0.0.1:{node.port}"],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["live"], found["ready"], found["model_ready"], found["missing_ready"]) == (
        True,
        True,
        True,
        False,
    )
    expected = iris({"x": ROWS})
    for way in ("json", "binary"):
        answer = found[way]
        assert (answer["id"], answer["model"]) == ("mine", "iris")
        assert answer["outputs"]["label"] == expected["label"].tolist()
        assert answer["outputs"]["probabilities"] == expected["probabilities"].tolist()
