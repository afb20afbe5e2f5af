"""The admin API on a real server: each path, each refusal, and its own description of both."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from interlock.api.problems import status_of
from interlock.core import errors
from interlock.core.letters import VersionState
from interlock.core.settings import NodeConfig
from interlock.operations.context import Context
from interlock.operations.status import ModelSummary, Status, VersionSummary
from interlock.registry.rows import Event, ReleaseRow, ReleaseState
from tests.api.servers import Served, served
from tests.app.nodes import until
from tests.operations.homes import (
    a_home,
    a_node,
    a_report,
    a_status,
    carrying_out,
    register_in_mlflow,
    release_and_carry_out,
)

pytestmark = pytest.mark.slow

READY = a_node(a_report("worker-0", a_status("iris", "2", VersionState.READY)))
NOT_READY = a_node(a_report("worker-0", a_status("iris", "2", VersionState.LOADING), ready=False))


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    release_and_carry_out(context, "iris", "1")
    release_and_carry_out(context, "iris", "2")
    yield context
    context.close()


@pytest.fixture
def api(ctx: Context) -> Iterator[Served]:
    with served(ctx, READY) as found:
        yield found


def test_status_models_versions_are_the_structs_of_the_operations(api: Served) -> None:
    status = msgspec.convert(api.ask("GET", "/api/status")[1], Status)
    assert status.not_ready == "" and status.node is not None and status.node.revision == 3
    models = msgspec.convert(api.ask("GET", "/api/models")[1], list[ModelSummary])
    assert [(m.name, m.live, m.ready) for m in models] == [("iris", "2", 1)]
    versions = msgspec.convert(api.ask("GET", "/api/models/iris/versions")[1], list[VersionSummary])
    assert [(v.number, v.state) for v in versions] == [("3", ""), ("2", "ready"), ("1", "")]


def test_events_and_releases_page(api: Served) -> None:
    events = msgspec.convert(api.ask("GET", "/api/events?after=0&limit=2")[1], list[Event])
    more = msgspec.convert(api.ask("GET", f"/api/events?after={events[-1].seq}&model=iris")[1], list[Event])
    assert [event.seq for event in events] == [1, 2] and more[0].seq == 3
    rows = msgspec.convert(api.ask("GET", "/api/releases?limit=1")[1], list[ReleaseRow])
    assert [row.number for row in rows] == ["2"]


def test_rollback_is_asked_for_and_wakes_the_loop(api: Served, ctx: Context) -> None:
    code, body = api.ask("POST", "/api/models/iris/rollback")
    row = msgspec.convert(body, ReleaseRow)
    assert (code, row.number, row.state, api.pokes) == (202, "1", ReleaseState.REQUESTED, 1)
    assert api.ask("GET", f"/api/releases/{row.id}") == (200, body)
    assert ctx.ledger.open_releases() == [row]


@pytest.mark.slow
def test_a_release_by_number_by_default_and_not_beside_another(api: Served, ctx: Context) -> None:
    register_in_mlflow(ctx, "iris", 3)
    ctx.registry.client.set_registered_model_alias("iris", "champion", "2")
    code, body = api.ask("POST", "/api/models/iris/release", b'{"version": "9"}')
    assert (code, body["error"]["code"]) == (404, "VersionNotFound")
    code, body = api.ask("POST", "/api/models/iris/release", b'{"alias": "champion"}')
    assert (code, body["number"]) == (202, "2")
    code, body = api.ask("POST", "/api/models/iris/release", b'{"version": "1"}')
    assert (code, body["number"]) == (202, "1")
    code, body = api.ask("POST", "/api/models/iris/release")
    assert (code, body["number"]) == (202, "3"), "one that nobody has begun is superseded"
    ctx.ledger.advance(body["id"], ReleaseState.PREPARING, time_s=1.0)
    code, body = api.ask("POST", "/api/models/iris/release", b'{"version": "2"}')
    assert (code, body["error"]["code"]) == (409, "ReleaseRefused")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/nothing", None, 404, "NotFound"),
        ("DELETE", "/api/models", None, 405, "MethodNotAllowed"),
        ("GET", "/api/models/rose/versions", None, 404, "ModelNotFound"),
        ("GET", "/api/releases/99", None, 404, "NotFound"),
        ("GET", "/api/releases/x", None, 400, "InvalidRequest"),
        ("GET", "/api/events?limit=0", None, 400, "InvalidRequest"),
        ("POST", "/api/models/rose/rollback", None, 404, "ModelNotFound"),
        ("POST", "/api/models/rose/release", None, 404, "ModelNotFound"),
        ("POST", "/api/models/iris/release", b"{", 400, "MalformedMessage"),
        ("POST", "/api/models/iris/release", b'{"version": 2}', 400, "MalformedMessage"),
        ("POST", "/api/models/iris/release", b'{"versio": "2"}', 400, "MalformedMessage"),
        ("POST", "/api/models/iris/release", b'{"version": "2", "alias": "a"}', 400, "MalformedMessage"),
        ("POST", "/api/models/iris/release", b'"' + b"x" * 100_000, 413, "RequestTooLarge"),
        ("POST", "/api/models/iris/load", None, 403, "Forbidden"),
        ("POST", "/api/models/iris/unload", None, 403, "Forbidden"),
    ],
)
def test_refusals(api: Served, method: str, path: str, body: bytes | None, status: int, code: str) -> None:
    found, answer = api.ask(method, path, body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"]["message"]


def test_unload_takes_a_model_off_where_it_is_allowed(ctx: Context) -> None:
    config = NodeConfig(home=ctx.home, allow_repository_control=True)
    with served(ctx, a_node(a_report("worker-0")), config) as api:
        assert api.ask("POST", "/api/models/iris/unload") == (204, b"")
        assert ctx.ledger.live("iris") is None and api.pokes == 1
        assert api.ask("POST", "/api/models/rose/unload")[0] == 404


@pytest.mark.slow
def test_unload_waits_until_no_worker_answers_for_the_model(ctx: Context) -> None:
    config = NodeConfig(home=ctx.home, allow_repository_control=True)
    with served(ctx, READY, config) as api:
        began: list[int] = []
        thread = threading.Thread(target=lambda: began.append(api.ask("POST", "/api/models/iris/unload")[0]))
        thread.start()
        until(lambda: ctx.ledger.live("iris") is None, "the unload in the ledger")
        thread.join(0.2)
        assert thread.is_alive(), "a worker still answers"
        api.node = a_node(a_report("worker-0"))
        thread.join(20)
        assert began == [204]


@pytest.mark.slow
def test_load_waits_until_the_newest_answers_or_says_why_not(ctx: Context) -> None:
    register_in_mlflow(ctx, "iris", 3)
    config = NodeConfig(home=ctx.home, allow_repository_control=True)
    with served(ctx, READY, config) as api:
        with carrying_out(ctx):
            code, body = api.ask("POST", "/api/models/iris/load", b"{}")
            assert (code, body["number"], body["state"]) == (200, "3", "done")
        with carrying_out(ctx, "worker-0 failed: no memory"):
            code, body = api.ask("POST", "/api/models/iris/load", b"{}")
            assert (code, body["error"]["code"]) == (500, "ReleaseFailed")
            assert "worker-0 failed: no memory" in body["error"]["message"]


def test_a_fault_of_ours_is_told_without_its_insides(ctx: Context) -> None:
    with served(ctx, READY) as api:
        ctx.ledger.live = None  # type: ignore[method-assign, assignment]
        code, body = api.ask("GET", "/api/status")
        assert (code, body["error"]["code"]) == (500, "InternalError")
        assert "NoneType" not in body["error"]["message"]


def test_the_statuses_are_those_that_the_tree_of_errors_states() -> None:
    assert errors.__doc__ is not None
    stated: list[tuple[str, str]] = re.findall(
        r"─ (\w+) .*\((?:HTTP )?(\d+)\)$", errors.__doc__, re.MULTILINE
    )
    assert len(stated) == 7
    for name, status in stated:
        kind = getattr(errors, name)
        assert status_of(kind("because")) == int(status), name


def test_health_tells_the_truth(api: Served, ctx: Context) -> None:
    assert api.ask("GET", "/health/ready") == (200, {"live": True, "ready": True, "reason": ""})
    with served(ctx, NOT_READY) as late:
        assert late.ask("GET", "/health/live")[0] == 200
        code, body = late.ask("GET", "/health/ready")
        assert (code, body["error"]["code"]) == (503, "NotReady")
        assert "worker-0 is not ready: iris/2 loading" in body["error"]["message"]


def test_metrics_are_text(api: Served) -> None:
    assert api.ask("GET", "/metrics") == (200, b"up 1\n")


def test_the_root_points_to_what_there_is(api: Served) -> None:
    status, pointer = api.ask("GET", "/")
    assert (status, pointer["name"]) == (200, "interlock")
    for name in ("openapi", "status", "metrics", "ready"):
        assert api.ask("GET", pointer[name])[0] == 200, name
    status, page = api.ask("GET", "/", headers={"accept": "text/html,*/*;q=0.8"})
    assert status == 200 and b'<a href="/metrics">' in page and pointer["inference"].encode() in page


def test_every_answer_has_a_described_schema(api: Served) -> None:
    _, document = api.ask("GET", "/api/openapi.json")
    schemas = document["components"]["schemas"]
    operations = 0
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operations += 1
            assert operation["description"], path
            for status, answer in operation["responses"].items():
                content = answer.get("content", {})
                assert content or status == "204", (path, status)
    assert operations == 23
    for name in _references(document):
        assert name in schemas, name
    assert schemas["ModelSummary"]["properties"]["live"]
    request = document["paths"]["/api/models/{name}/release"]["post"]["requestBody"]
    assert request["content"]["application/json"]["schema"]["not"]["required"] == ["version", "alias"]


def test_the_reference_lists_every_path(api: Served, repository: Path) -> None:
    assert (repository / api.ask("GET", "/")[1]["docs"]).is_file()
    _, document = api.ask("GET", "/api/openapi.json")
    page = (repository / "docs/reference/admin-api.md").read_text()
    rows = {line for line in page.splitlines() if line.startswith("| `")}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            row = f"| `{method.upper()} {path}` | {operation['description'].splitlines()[0]} |"
            assert row in rows
            rows.discard(row)
    assert not rows, "the reference lists what the API does not have"


def _references(document: Any) -> set[str]:
    return {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
