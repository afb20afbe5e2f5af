"""The commands against a real node, started the way a user starts it."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from interlock.core.model import artifact_path
from interlock.operations.discovery import is_locked
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.serving.counters import block_files, owner_is_dead
from tests.app.nodes import put_onnx, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

ANY_PORTS = ("--http-port", "0", "--admin-port", "0")
TOKEN = "a-token-of-enough-characters"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "interlock.cli.main", *words],
        capture_output=True, text=True, timeout=200, env={**os.environ, **environment},
    )  # fmt: skip


def good(*words: str, **environment: str) -> str:
    done = run(*words, **environment)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture
def home(interlock_home: Path) -> Iterator[Path]:
    yield interlock_home
    if is_locked(interlock_home):
        run("down", "--timeout", "20", "--force")


def a_model(folder: Path, weight: float) -> Path:
    """An ONNX file that answers with the sum of four numbers, times a weight."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4, 1], [weight] * 4)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [tensor],
    )
    path = folder / f"times-{weight:g}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def control_has_mlflow() -> bool:
    """Whether control holds the libraries that MLflow alone brings in there."""
    processes = json.loads(good("status", "--json"))["node"]["processes"]
    (pid,) = (one["report"]["pid"] for one in processes if one["report"]["process"] == "control")
    return "/pandas/" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.beside
@pytest.mark.usefixtures("home_with_store")
def test_a_models_whole_life(home: Path, tmp_path: Path) -> None:
    assert "registered sum version 1 (onnx, inline)" in good("register", "sum", str(a_model(tmp_path, 1)))
    assert "no node runs here" in good("release", "sum", "--now")
    urls = json.loads(good("up", "--detach", *ANY_PORTS, "--json"))
    # What was released before the node was there is live when `up` returns.
    assert good("predict", "sum", "--data", "[[1, 2, 3, 4], [0, 0, 0, 1]]").split() == ["Y", "10.0", "1.0"]
    assert not control_has_mlflow()

    good("register", "sum", str(a_model(tmp_path, 2)))
    early = run("predict", "sum", "--version", "2", "--data", "[1, 2, 3, 4]")
    assert early.returncode == 1 and "version '2' of model 'sum' is not loaded" in early.stderr
    assert "interlock versions sum" in early.stderr and "interlock release sum 2 --now" in early.stderr
    assert "version 2 of sum is live" in good("release", "sum", "--now")
    answer = json.loads(good("predict", "sum", "--data", "[1, 2, 3, 4]", "--json"))
    assert (answer["model_version"], answer["outputs"][0]["data"]) == ("2", [20.0])
    versions = json.loads(good("versions", "sum", "--json"))
    assert control_has_mlflow()
    assert [(v["number"], v["live"], v["state"]) for v in versions] == [
        ("2", True, "ready"),
        ("1", False, ""),
    ]
    assert "version 1 of sum is live" in good("rollback", "sum")
    # In one pipe, what is said comes before the table, as on a terminal.
    both = [sys.executable, "-m", "interlock.cli.main", "predict", "sum", "--data", "[1, 2, 3, 4]"]
    said = subprocess.run(both, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    assert said.stdout.split() == ["sum", "version", "1", "Y", "10.0"]
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,c,d\n1,2,3,4\n")
    for url in urls["http_url"], urls["admin_url"]:
        assert good("predict", "sum", "--data", str(rows), "--url", url).split() == ["Y", "10.0"]
    refused = run("rollback", "sum")
    assert refused.returncode == 1 and "nothing before it" in refused.stderr

    wrong = run("predict", "sum", "--data", "[[1, 2]]")
    assert wrong.returncode == 1 and "got shape [1, 2]; the signature wants [-1, 4]" in wrong.stderr
    status = json.loads(good("status", "--json"))
    assert status["not_ready"] == "" and status["models"][0]["ready"] == 1
    kinds = [event["kind"] for event in json.loads(good("events", "sum", "--json"))]
    assert kinds.count("release.done") == 3

    again = run("up", "--detach", *ANY_PORTS)
    assert again.returncode == 1 and "a node runs in" in again.stderr and "interlock down" in again.stderr
    good("down")
    assert not is_locked(home)
    assert "no node runs in" in run("predict", "sum", "--data", "[1, 2, 3, 4]").stderr
    good("up", "--detach", *ANY_PORTS)
    assert good("predict", "sum", "--data", "[1, 2, 3, 4]").split() == ["Y", "10.0"]


@pytest.mark.beside
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_ends_the_node_in_order(home: Path, number: int) -> None:
    command = [sys.executable, "-m", "interlock.cli.main", "up", *ANY_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as node:
        assert node.stdout is not None
        lines = [node.stdout.readline() for _ in range(6)]
        assert re.fullmatch(r"interlock is up \(pid \d+, workers: 1\)\n", lines[0])
        assert is_locked(home)
        node.send_signal(number)
        assert node.wait(60) == 0
    assert not is_locked(home)


@pytest.mark.beside
def test_a_start_that_fails_says_why(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("up", "--detach", "--http-port", str(port), "--admin-port", "0")
    assert done.returncode == 1
    assert "the node ended with code 2" in done.stderr and str(port) in done.stderr
    assert not is_locked(home)


def log_of_the_node(home: Path) -> str:
    path = home / "logs" / "node.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.beside
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_detached_start_that_is_interrupted_leaves_no_node(home: Path, number: int) -> None:
    command = [sys.executable, "-m", "interlock.cli.main", "up", "--detach", *ANY_PORTS]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "INTERLOCK_TOKEN": TOKEN}
    ) as up:
        until(lambda: '"started"' in log_of_the_node(home) or up.poll() is not None, "a process of the node")
        up.send_signal(number)
        assert up.wait(60) == 128 + number
    assert not is_locked(home)
    assert not [block for block in block_files(home / "run") if not owner_is_dead(block)]
    assert not (home / "run" / "token").exists() and not (home / "run" / "node.json").exists()


@pytest.mark.beside
def test_a_detached_start_that_takes_too_long_is_stopped(home: Path) -> None:
    # Control cannot be: its letters' socket would be a folder.
    (home / "run" / "control.sock").mkdir(parents=True)
    done = run("up", "--detach", "--timeout", "3", *ANY_PORTS)
    assert done.returncode == 1 and "was not ready after 3 s and is stopped" in done.stderr
    assert "--timeout" in done.stderr and not is_locked(home)


@pytest.mark.beside
def test_the_app_file_has_its_say_and_options_win(home: Path) -> None:
    home.mkdir()
    lines = (
        "schema = 1",
        "[node]",
        'server_name = "file"',
        "workers = 2",
        'log_level = "debug"',
        "http_port = 1",
    )
    (home / "app.toml").write_text("\n".join(lines))
    urls = json.loads(good("up", "--detach", *ANY_PORTS, "--log-level", "info", "--json"))
    assert json.loads(good("status", "--json"))["node"]["workers"] == 2
    with urllib.request.urlopen(f"{urls['http_url']}/v2", timeout=30) as answer:
        assert json.load(answer)["name"] == "file"
    assert '"level": "debug"' not in (home / "logs" / "worker-0.log").read_text()
    good("down")
    (home / "app.toml").write_bytes(b"[node]\nserver_name = '\xff'\n")
    done = run("up", "--detach", *ANY_PORTS)
    assert done.returncode == 1 and "app.toml cannot be read" in done.stderr
    (home / "app.toml").write_text("[node]\nworker = 2\n")
    done = run("up", "--detach", *ANY_PORTS)
    assert done.returncode == 1 and "unknown worker" in done.stderr


@pytest.mark.beside
def test_a_token_is_kept_from_other_users_and_wanted(home: Path) -> None:
    up = ("up", "--detach", "--allow-repository-control", *ANY_PORTS, "--json")
    urls = json.loads(good(*up, INTERLOCK_TOKEN=TOKEN))
    assert stat.S_IMODE((home / "run" / "token").stat().st_mode) == 0o600
    for process in json.loads(good("status", "--json"))["node"]["processes"]:
        seen = Path(f"/proc/{process['report']['pid']}")
        assert TOKEN.encode() not in (seen / "cmdline").read_bytes()
        assert TOKEN.encode() not in (seen / "environ").read_bytes()
    refused = run("status", "--url", urls["admin_url"])
    assert refused.returncode == 1 and "wants a token" in refused.stderr
    good("status", "--url", urls["admin_url"], INTERLOCK_TOKEN=TOKEN)
    # A worker that carries V2 load and unload to control has the token too.
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{urls['http_url']}/v2/repository/models/none/unload", data=b"", timeout=30)
    assert error.value.code == 404
    error.value.close()  # its socket, which else some later test is warned of
    good("down")
    good("up", "--detach", *ANY_PORTS)
    assert not (home / "run" / "token").exists()


HALVES = """
import numpy as np

class Halves:
    signature = {
        "inputs": {"x": ("FP16", [-1, 2]), "word": ("BYTES", [-1, 1])},
        "outputs": {"y": ("FP16", [-1, 2]), "bytes": ("BYTES", [-1])},
    }

    def predict(self, inputs):
        words = [word if isinstance(word, bytes) else word.encode() for word in inputs["word"].ravel()]
        words = np.array([word + bytes([255]) for word in words], object)
        return {"y": inputs["x"] / np.float16(2), "bytes": words}
"""


@pytest.mark.beside
def test_one_model_that_cannot_be_loaded_keeps_nobody_else_from_a_start(home: Path) -> None:
    harmed = put_onnx(home, "harmed", "1", 2.0)
    put_onnx(home, "well", "1", 3.0)
    ledger = Ledger(home / "ledger.db")
    for name in ("harmed", "well"):
        row = ledger.request_release(name, "1", "now", 1.0)
        for state in (ReleaseState.PREPARING, ReleaseState.SWITCHING, ReleaseState.DONE):
            ledger.advance(row.id, state, time_s=1.0)
    ledger.close()
    with (artifact_path(home, harmed.digest) / "model.onnx").open("ab") as file:
        file.write(b"\0")
    began = run("up", "--detach", *ANY_PORTS, "--json", "--timeout", "30")
    assert began.returncode == 0, began.stderr
    assert "not answered: harmed version 1 failed: artifact of harmed/1" in began.stderr
    assert good("predict", "well", "--data", "[[1, 2]]").split() == ["Y", "[3.0,", "6.0]"]
    said = good("status")
    assert "ready, but not all that is live is answered" in said
    assert "not answered: harmed version 1 failed: artifact of harmed/1" in said and "(worker-0)" in said
    url = json.loads(began.stdout)["http_url"]
    for path, status in (("/v2/health/ready", 200), ("/v2/models/harmed/ready", 503)):
        try:
            assert urllib.request.urlopen(url + path, timeout=10).status == status
        except urllib.error.HTTPError as error:
            assert error.code == status
            error.close()


@pytest.mark.beside
@pytest.mark.usefixtures("home_with_store")
def test_the_longest_name_in_four_byte_letters_goes_all_the_way(home: Path, tmp_path: Path) -> None:
    name = "\N{STEAM LOCOMOTIVE}" * 127 + "a"
    source = tmp_path / "halves.py"
    source.write_text(HALVES)
    assert f"registered {name} version 1 (python, executor)" in good("register", name, str(source), "--trust")
    urls = json.loads(good("up", "--detach", *ANY_PORTS, "--json"))
    assert f"version 1 of {name} is live" in good("release", name, "--now")
    # Half floats and texts that are no UTF-8, as the command sends and shows them.
    answer = json.loads(good("predict", name, "--data", '{"x": [[3, 1]], "word": ["ä"]}', "--json"))
    assert [(o["name"], o["data"]) for o in answer["outputs"]] == [("y", [1.5, 0.5]), ("bytes", ["ä\\xff"])]
    assert [model["name"] for model in json.loads(good("models", "--json"))] == [name]
    assert [version["state"] for version in json.loads(good("versions", name, "--json"))] == ["ready"]
    with urllib.request.urlopen(f"{urls['admin_url']}/metrics", timeout=30) as page:
        assert f'interlock_dispatched_requests_total{{model="{name}",version="1"}} 1' in page.read().decode()
    files = [path.name for path in (*(home / "logs").iterdir(), *home.glob("run/**/*"))]
    assert any(file.startswith("x-\N{STEAM LOCOMOTIVE}") and file.endswith(".log") for file in files)
    assert max(len(file.encode()) for file in files) <= 255
    processes = json.loads(good("status", "--json"))["node"]["processes"]
    assert sum(p["report"]["process"].startswith("x-") and p["report"]["ready"] for p in processes) == 1
    # The model puts its own byte behind the one that says that a text is missing.
    none = good("predict", name, "--data", '{"x": [[3, 1]], "word": [null]}', "--json")
    assert json.loads(none)["outputs"][1]["data"] == ["\\xff\\xff"]
    # A whole request goes as it is written; the server says what is wrong with it.
    word = {"name": "word", "datatype": "BYTES", "shape": [1, 1], "data": ["ä"]}
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 1]}
    refused = run("predict", name, "--data", json.dumps({"inputs": [x, word]}))
    assert refused.returncode == 1 and "got datatype FP32; the signature wants FP16" in refused.stderr
