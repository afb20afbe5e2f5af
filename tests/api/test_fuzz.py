"""Whatever is sent to the admin API: an answer that its own description allows, and never a fault of ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.core.letters import VersionState
from interlock.core.settings import NodeConfig
from tests.api.servers import Served, served
from tests.operations.homes import a_home, a_node, a_report, a_status, release_and_carry_out
from tests.thorough import examples

NAMES = st.sampled_from(["iris", "rose", "..", "a" * 129]) | st.text(min_size=1, max_size=20)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


BODIES = (
    st.none()
    | st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["version", "alias", "x"]), VALUES).map(
        lambda d: json.dumps(d).encode()
    )
)
QUERIES = st.dictionaries(
    st.sampled_from(["after", "limit", "model", "x"]), st.integers().map(str) | st.text(max_size=8)
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home: Path = tmp_path_factory.mktemp("home")
    context = a_home(home, iris=3)
    release_and_carry_out(context, "iris", "1")
    node = a_node(a_report("worker-0", a_status("rose", "2", VersionState.READY)))
    with served(context, node, NodeConfig(home=home, allow_repository_control=True)) as found:
        yield found
    context.close()


@pytest.fixture(scope="module")
def operations(api: Served) -> list[tuple[str, str, set[int]]]:
    document: dict[str, Any] = api.ask("GET", "/api/openapi.json")[1]
    return [
        (method.upper(), path, {int(status) for status in operation["responses"]})
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if not path.endswith("/load")  # it waits for a node to carry it out
    ]


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(data=st.data())
def test_every_answer_is_one_that_is_described(
    api: Served, operations: list[tuple[str, str, set[int]]], data: st.DataObject
) -> None:
    method, path, described = data.draw(st.sampled_from(operations))
    name = data.draw(NAMES)
    target = path.replace("{name}", quote(name.encode("utf-8", "replace"), safe=""))
    target = target.replace("{id}", quote(str(data.draw(st.integers() | st.just("x")))))
    query = data.draw(QUERIES)
    body = data.draw(BODIES) if method == "POST" else None
    status, answer = api.ask(method, f"{target}?{urlencode(query, errors='replace')}", body)
    # A path that a name has changed ("..", an empty part) is no path of the API: 404 with the same body.
    assert status in described | {404}, (method, target, query, body, status, answer)
    assert status != 500, answer
    if status >= 400:
        assert set(answer["error"]) == {"code", "message"} and answer["error"]["message"]
