"""Serves what plain MLflow code registered and nothing of ours reads: under a real node, each model in the
environment that its requirements ask for, answering what MLflow's own `predict` does."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.core.errors import UntrustedArtifact
from interlock.core.model import Placement
from interlock.operations.context import Context, opened
from interlock.operations.resolve import resolve
from interlock.registry import environments
from interlock.runtime.environment import OPTION, environment_path
from tests.app.nodes import RunningNode, until

# MLflow logs two models, and pip builds an environment of 50 packages.
pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow, pytest.mark.timeout(500)]

PLAIN = """
import sys
import cloudpickle, mlflow, pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
mlflow.set_tracking_uri(sys.argv[1])
mlflow.create_experiment("plain", artifact_location="file://" + sys.argv[2])
mlflow.set_experiment("plain")
class Ascii(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        from text_unidecode import unidecode
        self.plain = unidecode
    def predict(self, context, model_input, params=None):
        plain = [self.plain(text) for text in model_input["name"]]
        lengths = [len(text) * factor for text, factor in zip(plain, model_input["factor"])]
        return pd.DataFrame({"plain": plain, "length": lengths})
mlflow_is = f"mlflow=={mlflow.__version__}"
X = pd.DataFrame({"name": ["Z\\u00fcrich"], "factor": [1.5]})
Y = pd.DataFrame({"plain": ["Zurich"], "length": [9.0]})
mlflow.pyfunc.log_model(
    name="model", python_model=Ascii(), signature=infer_signature(X, Y), registered_model_name="ascii",
    pip_requirements=[mlflow_is, "cloudpickle", "text-unidecode==1.3"],
)
X, y = load_iris(return_X_y=True, as_frame=True)
model = LogisticRegression(max_iter=500).fit(X, y)
with open("model.pkl", "wb") as file:
    cloudpickle.dump(model, file)
mlflow.pyfunc.log_model(
    name="model", loader_module="mlflow.sklearn", data_path="model.pkl",
    signature=infer_signature(X, model.predict(X)), registered_model_name="flowers",
    pip_requirements=[mlflow_is, "scikit-learn"],
)
"""

ASK = """
import json, sys
import mlflow.pyfunc, pandas as pd
frame = pd.DataFrame(json.loads(sys.argv[2]))
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)
print("\\n" + json.dumps(answer.to_dict("list") if hasattr(answer, "to_dict") else answer.tolist()))
"""

NAMES = {"name": ["Zürich", "Kraków", "北京", ""], "factor": [1.5, 2.0, 0.5, 1.0]}
FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.2, 2.9, 4.3, 1.3], [7.7, 3.0, 6.1, 2.3]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/tracking.db"
    shutil.copy(empty_store, folder / "tracking.db")
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, uri, str(folder / "artifacts")]
    subprocess.run(command, cwd=folder, check=True, timeout=200, capture_output=True)
    return uri


def logged(folder: Path, ctx: Context, name: str) -> Path:
    """The model's folder as MLflow has it."""
    (folder / name).mkdir()
    ctx.registry.download(name, "1", folder / name)
    return folder / name


def said_by_mlflow(python: Path, folder: Path, rows: object) -> object:
    command = [str(python), "-W", "ignore", "-c", ASK, str(folder), json.dumps(rows)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(command, env=variables, check=True, timeout=100, capture_output=True, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def interlock(*arguments: str) -> Result:
    # Here, not in a process of its own, which would import MLflow once more.
    return CliRunner().invoke(cli, list(arguments))


def test_plain_models_are_served_in_the_environments_that_they_need(
    interlock_home: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    # Most of what is installed is never imported: to compile all of it takes as long as all the rest of pip.
    monkeypatch.setenv("PIP_NO_COMPILE", "1")
    refused = interlock("release", "ascii", "--now")
    assert refused.exit_code == 1 and "interlock release ascii 1 --trust" in refused.stderr
    done = interlock("release", "ascii", "--now", "--trust")
    assert done.exit_code == 0, done.stderr
    assert "the node's does not have text-unidecode==1.3" in done.stderr and "pip: " in done.stderr
    with opened(interlock_home) as ctx:
        with pytest.raises(UntrustedArtifact):
            resolve(ctx, "flowers")
        assert [version.model for version in ctx.ledger.versions()] == ["ascii"]
        flowers = resolve(ctx, "flowers", trust=True)
        assert (flowers.runtime, flowers.options[OPTION]) == ("pyfunc", "")
        ascii_model = resolve(ctx, "ascii", "1")  # signed off: nobody has to trust it again
        assert ascii_model.placement is Placement.EXECUTOR
        environment = environment_path(interlock_home, ascii_model.options[OPTION])
        folders = {name: logged(tmp_path, ctx, name) for name in ("ascii", "flowers")}
    expected = said_by_mlflow(environment / "bin" / "python", folders["ascii"], NAMES)
    with RunningNode(interlock_home) as node:
        done = interlock("release", "flowers", "--now")
        assert done.exit_code == 0, done.stderr
        until(lambda: node.is_ready(), "ready", 100.0)
        client = triton.InferenceServerClient(f"127.0.0.1:{node.node.http_port}")
        for model in ("ascii", "flowers"):  # a node that was ready stays so while it loads one more
            until(partial(client.is_model_ready, model), f"ready: {model}", 100.0)
        name = triton.InferInput("name", [4, 1], "BYTES")
        name.set_data_from_numpy(np.array(NAMES["name"], object).reshape(4, 1))
        factor = triton.InferInput("factor", [4, 1], "FP64")
        factor.set_data_from_numpy(np.array(NAMES["factor"]).reshape(4, 1))
        answer = client.infer("ascii", [name, factor])
        plain = [text.decode() for text in answer.as_numpy("plain").tolist()]
        assert {"plain": plain, "length": answer.as_numpy("length").tolist()} == expected
        assert plain[:2] == ["Zurich", "Krakow"]
        table = triton.InferInput("input", [3, 4], "FP64")
        table.set_data_from_numpy(np.array(FLOWERS))
        rows = [dict(zip(flowers.signature.columns, row, strict=True)) for row in FLOWERS]
        got = client.infer("flowers", [table]).as_numpy("output").tolist()
        here = mlflow.pyfunc.load_model(str(folders["flowers"]))
        assert got == here.predict(pd.DataFrame(rows)).tolist()

        # The environment is lost, as in a home that was copied: a clear reason, and the next release has it.
        environment.rename(tmp_path / "away")
        os.kill(node.pids("x-ascii")["x-ascii-1"], 9)
        log = interlock_home / "logs" / "x-ascii-1.log"
        until(lambda: "needs its own environment" in log.read_text(), "the reason", 100.0)
        built: list[str] = []

        def back(home: Path, wanted: object, folder: Path, **options: object) -> str:
            built.append(str(folder))
            (tmp_path / "away").rename(environment)
            return ""

        with monkeypatch.context() as patch, opened(interlock_home) as ctx:
            patch.setattr(environments, "build", back)
            resolve(ctx, "ascii", "1")
        assert len(built) == 1
        done = interlock("release", "ascii", "1", "--now")
        assert done.exit_code == 0, done.stderr
        until(lambda: bool(client.is_model_ready("ascii")), "ascii again", 100.0)
        client.close()
