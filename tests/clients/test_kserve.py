"""KServe's InferenceRESTClient, in its own environment, against V2 alone and against a whole node."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.nodes import RunningNode, put_onnx
from tests.wire.direct import iris, serving
from tests.wire.node import running

ROWS = [[5.1, 3.5, 1.4, 0.2], [1.0, 2.0, 3.0, 4.0]]


def calls(python: Path, port: int, model: str, rows: list[list[float]]) -> dict[str, Any]:
    script = Path(__file__).with_name("kserve_calls.py")
    done = subprocess.run(
        [python, script, f"http://127.0.0.1:{port}", model, "x", json.dumps(rows)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert [found[key] for key in ("live", "ready", "model_ready", "missing_ready")] == [
        True,
        True,
        True,
        False,
    ]
    for way in ("json", "binary"):
        assert (found[way]["id"], found[way]["model"]) == ("mine", model)
    return found


@pytest.mark.server
@pytest.mark.beside
def test_kserves_client_asks_for_health_and_infers_in_json_and_binary(kserve_python: Path) -> None:
    with running(serving()) as node:
        found = calls(kserve_python, node.port, "iris", ROWS)
    expected = iris({"x": np.array(ROWS, np.float32)})
    for way in ("json", "binary"):
        assert found[way]["outputs"]["label"] == expected["label"].tolist()
        assert found[way]["outputs"]["probabilities"] == expected["probabilities"].tolist()


@pytest.mark.server
@pytest.mark.beside
def test_kserves_client_infers_on_a_whole_node(kserve_python: Path, interlock_home: Path) -> None:
    put_onnx(interlock_home, "double", "1", 2.0)
    with RunningNode(interlock_home) as node:
        node.wait_ready()
        assert node.release("double", "1").state == "done"
        found = calls(kserve_python, node.node.http_port, "double", [[1.5, 2.0], [0.0, -1.0]])
    for way in ("json", "binary"):
        assert found[way]["outputs"] == {"y": [[3.0, 4.0], [0.0, -2.0]]}
