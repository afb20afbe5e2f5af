"""Holds that only what MLflow signed with our secret, and lately, wakes who asks MLflow."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from interlock.api.webhook import FRESH_S, PATH, check_signature
from interlock.core.errors import Forbidden
from interlock.core.settings import NodeConfig
from interlock.operations.context import Context
from tests.api.servers import Served, served
from tests.operations.homes import a_home, a_node, a_report

pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import

SECRET = "a secret of enough characters"
BODY = json.dumps({"entity": "model_version_alias", "data": {"name": "größe"}})
NOW_S = 1_800_000_000.0


def headers(secret: str = SECRET, time_s: float = NOW_S, body: str = BODY) -> dict[str, str]:
    stamp = str(int(time_s))
    return {
        "X-MLflow-Delivery-Id": "0b6c",
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": _generate_hmac_signature(secret, "0b6c", stamp, body),
    }


def check(given: dict[str, str], secret: str | None = SECRET, body: str = BODY) -> None:
    check_signature(
        secret,
        given["X-MLflow-Delivery-Id"],
        given["X-MLflow-Timestamp"],
        given["X-MLflow-Signature"],
        body.encode(),
        NOW_S,
    )


def test_what_mlflow_signs_is_believed() -> None:
    check(headers())
    check(headers(time_s=NOW_S - FRESH_S))


@pytest.mark.parametrize(
    ("given", "secret", "words"),
    [
        (headers(), None, "webhooks are off"),
        (headers("short"), "short", "want 16"),
        (headers("another secret of enough characters"), SECRET, "X-MLflow-Signature"),
        (headers(body=BODY + " "), SECRET, "X-MLflow-Signature"),
        ({**headers(), "X-MLflow-Delivery-Id": "0b6d"}, SECRET, "X-MLflow-Signature"),
        ({**headers(), "X-MLflow-Signature": ""}, SECRET, "X-MLflow-Signature"),
        ({**headers(), "X-MLflow-Signature": "v1,é"}, SECRET, "X-MLflow-Signature"),
        (headers(time_s=NOW_S - FRESH_S - 1), SECRET, "more than 300 s"),
        (headers(time_s=NOW_S + FRESH_S + 1), SECRET, "more than 300 s"),
        ({**headers(), "X-MLflow-Timestamp": "soon"}, SECRET, "want Unix seconds"),
        ({**headers(), "X-MLflow-Timestamp": "٣"}, SECRET, "want Unix seconds"),
        ({**headers(), "X-MLflow-Timestamp": "9" * 400}, SECRET, "want Unix seconds"),
    ],
)
def test_all_else_is_refused(given: dict[str, str], secret: str | None, words: str) -> None:
    with pytest.raises(Forbidden, match=words) as refused:
        check(given, secret)
    assert SECRET not in refused.value.message


@pytest.fixture
def api(interlock_home: Path) -> Iterator[tuple[Context, Served, list[int]]]:
    ctx = a_home(interlock_home)
    hints: list[int] = []
    config = NodeConfig(home=ctx.home, token="a token that mlflow does not have")
    with served(ctx, a_node(a_report("worker-0")), config, hint=lambda: hints.append(1)) as found:
        yield ctx, found, hints
    ctx.close()


def test_over_http_a_signature_stands_for_the_token(api: tuple[Context, Served, list[int]]) -> None:
    ctx, found, hints = api
    given = headers(time_s=time.time())
    status, answer = found.ask("POST", PATH, BODY.encode(), given)
    assert status == 403 and "webhooks are off" in answer["error"]["message"]
    (ctx.home / "webhook-secret").write_text(SECRET + "\n")
    assert found.ask("POST", PATH, BODY.encode(), given)[0] == 204 and hints == [1]
    assert found.ask("POST", PATH, b"{}", given)[0] == 403
    assert found.ask("POST", PATH, b"x" * 70_000, given)[0] == 413
    assert found.ask("GET", "/api/status")[0] == 403, "the token is wanted for all else"
    assert hints == [1]
