"""A real node and a real server of MLflow's: aliases, webhooks, and what goes on while the server is down."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from interlock.registry.ledger import Ledger
from tests.app.nodes import RunningNode, put_onnx, until
from tests.app.traffic import Traffic
from tests.registry.stores import MlflowServer

pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.slow]

SECRET = "a secret of enough characters"
APP = """
[models.m.follow]
alias = "champion"
strategy = "now"
every_s = 3600

[models.other.follow]
alias = "champion"
strategy = "now"
every_s = 0.5
"""


@pytest.fixture
def server(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path / "server", empty_store) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server


def cli(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlock.cli.main", *words, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def timed(work: Callable[[], subprocess.CompletedProcess[str]]) -> tuple[float, int, str]:
    started_s = time.monotonic()
    done = work()
    return time.monotonic() - started_s, done.returncode, done.stderr


def test_aliases_are_followed_and_a_server_that_is_down_stops_nothing(
    server: MlflowServer, interlock_home: Path
) -> None:
    home = interlock_home
    client = MlflowClient(server.uri, server.uri)
    for model, factors in (("m", (3.0, 5.0)), ("other", (4.0, 7.0))):
        client.create_registered_model(model)
        for number, factor in zip(("1", "2"), factors, strict=True):
            client.create_model_version(model, source="s3://bucket/model")
            put_onnx(home, model, number, factor)
        client.set_registered_model_alias(model, "champion", "1")
    (home / "app.toml").write_text(APP)
    (home / "webhook-secret").write_text(SECRET)
    ledger = Ledger(home / "ledger.db")

    with RunningNode(home) as node:
        node.wait_ready()
        until(lambda: node.answers("m", 6.0) and node.answers("other", 8.0), "the versions of the aliases")

        client.create_webhook(
            "interlock",
            f"http://127.0.0.1:{node.node.admin_port}/api/webhooks/mlflow",
            ["model_version_alias.created"],
            secret=SECRET,
        )
        client.set_registered_model_alias("m", "champion", "2")
        until(lambda: node.answers("m", 10.0), "the version of the alias, long before the next look")

        with Traffic(node).flowing() as traffic:
            server.kill()
            assert cli(home, "status").returncode == 0
            back = cli(home, "rollback", "m")
            assert back.returncode == 0 and node.answers("m", 6.0), back.stderr
            again = cli(home, "release", "m", "2", "--now")
            assert again.returncode == 0 and node.answers("m", 10.0), again.stderr

            took_s, code, words = timed(lambda: cli(home, "release", "m", "9", "--now"))
            assert code != 0 and took_s < 20, took_s
            assert f"the registry {server.uri} does not answer: Connection refused" in words

            (home / "model.py").write_text(
                "class Model:\n    def predict(self, inputs):\n        return inputs\n"
            )
            took_s, code, words = timed(lambda: cli(home, "register", "new", str(home / "model.py")))
            assert code != 0 and took_s < 20, took_s
            assert f"nothing was registered: the registry {server.uri} does not answer" in words
            assert ledger.model("new") is None

            server.start()
            client.set_registered_model_alias("other", "champion", "2")
            until(lambda: node.answers("other", 14.0), "the alias after the server came back")
            client.set_registered_model_alias("m", "champion", "1")
            until(lambda: node.answers("m", 6.0), "a webhook after the server came back")
        assert traffic.failed == 0, (traffic.answers, traffic.broken)

    told = [(event.model, event.kind, event.body["number"]) for event in ledger.events()]
    moves = [line for line in told if line[1].startswith("alias.")]
    assert sorted(moves[:2]) == [("m", "alias.released", "1"), ("other", "alias.released", "1")]
    assert moves[2:] == [
        ("m", "alias.released", "2"),
        ("other", "alias.released", "2"),
        ("m", "alias.released", "1"),
    ]
    waited = [
        line for line in (home / "logs" / "control.log").read_text().splitlines() if "has to wait" in line
    ]
    assert len(waited) == 1, "of a server that is down the log tells once"
    ledger.close()
