"""Holds the two lives in docs/ to the code (every name exists) and to real runs (events, counts, headers)."""

import ast
import http.client
import json
import re
from pathlib import Path

import onnx
import onnx.helper
import pytest

from interlock.core.request import parse_request_id
from interlock.core.settings import run_folder
from interlock.core.state import ArmCounts, ArmKey, Histogram
from interlock.operations.context import opened
from interlock.operations.register import register
from interlock.operations.release import release_now, rollback
from interlock.registry.ledger import Ledger
from interlock.registry.rows import Event, ReleaseState
from interlock.rollout.replay import replay
from interlock.serving.counters import read_all
from tests.app.nodes import RunningNode, put_onnx, until

DOCS = Path(__file__).resolve().parents[2] / "docs"
SOURCE = Path(__file__).resolve().parents[2] / "src" / "interlock"
LIVES = [DOCS / "life-of-a-request.md", DOCS / "life-of-a-version.md"]
NAMED = re.compile(r"`([a-z]+/\w+\.py)(?::([\w.]+))?`")


def unknown(text: str) -> list[str]:
    """The names in a text, as `folder/file.py` or `folder/file.py:Name.name`, that the code does not have."""
    found = []
    for path, name in NAMED.findall(text):
        file = SOURCE / path
        if not file.is_file():
            found.append(path)
        elif name and not _defines(ast.parse(file.read_text()).body, name.split(".")):
            found.append(f"{path}:{name}")
    return found


def _defines(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether the first name is bound in a module's or class's body, and the others inside of it."""
    for node in body:
        bound: list[str] = []
        inner: list[ast.stmt] = []
        match node:
            case ast.ClassDef(name=name):
                bound, inner = [name], node.body
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound = [name]
            case ast.Assign(targets=targets):
                bound = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound = [name]
        if names[0] in bound and (len(names) == 1 or _defines(inner, names[1:])):
            return True
    return False


def column(text: str, heading: str) -> list[str]:
    """The first column of the table under a heading, without backticks."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return [row.strip("`") for row in rows[2:]]


@pytest.mark.parametrize("file", LIVES, ids=lambda file: file.stem)
def test_every_name_in_a_life_exists(file: Path) -> None:
    text = file.read_text()
    assert unknown(text) == []
    steps = re.split(r"(?m)^## \d\. ", text)[1:]
    assert len(steps) >= 6
    for step in steps:
        # A step that names no code could say anything.
        assert NAMED.search(step), f"this step names no code: {step[:60]}"


def test_a_name_that_does_not_exist_is_caught() -> None:
    text = "`serving/lane.py:Lane.start` `serving/lane.py:Lane.begin` `serving/nowhere.py` `core/model.py:M`"
    assert unknown(text) == ["serving/lane.py:Lane.begin", "serving/nowhere.py", "core/model.py:M"]
    assert unknown("`serving/suspects.py:HUNG_SHARE` `core/state.py:ArmCounts.lost`") == []


def test_links_and_files_that_the_docs_name_exist() -> None:
    files = [DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md", *DOCS.rglob("*.md")]
    broken = [
        f"{file.name}: {link}"
        for file in files
        for link in re.findall(r"\]\(([^)#\s]+)\)", file.read_text())
        if "://" not in link and not (file.parent / link).exists()
    ]
    assert broken == []
    named = {
        f"{file.name}: {name}"
        for file in files
        for name in unknown(file.read_text())
        if not (DOCS.parent / name.split(":")[0]).exists()
    }
    assert named == set()


@pytest.mark.server
@pytest.mark.beside
def test_a_request_leaves_the_marks_that_its_life_names(interlock_home: Path) -> None:
    text = (DOCS / "life-of-a-request.md").read_text()
    counts, headers = column(text, "What moves while it lives"), column(text, "What an answer carries")
    assert len(counts) >= 6 and len(headers) >= 3
    put_onnx(interlock_home, "scale", "1", 3.0)
    with RunningNode(interlock_home) as node:
        node.wait_ready()
        release = node.release("scale", "1").id
        until(lambda: node.answers("scale", 6.0), "an answer")
        key = ArmKey("scale", "1", release, 0, 0)
        # An answer leaves before it is counted.
        until(lambda: is_settled(counted(interlock_home, key)), "all that was asked is counted")
        before = counted(interlock_home, key)
        got = ask(node.node.http_port)
        until(lambda: _moved(before, counted(interlock_home, key), "ok") > 0, "the request is counted")
        after = counted(interlock_home, key)
    assert {name: _moved(before, after, name) for name in counts} == dict.fromkeys(counts, 1)
    still = {"invalid", "failed", "timed_out", "cancelled", "lost", "refused"}
    assert {name: _moved(before, after, name) for name in still} == dict.fromkeys(still, 0)
    assert set(headers) <= set(got)
    made = parse_request_id(got["interlock-request-id"].encode())
    assert (made.release, made.epoch, made.arm) == (release, 0, 0)


def ask(port: int) -> dict[str, str]:
    """The headers of a good answer."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 1.0]}]}
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request("POST", "/v2/models/scale/infer", json.dumps(body), trace)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def counted(home: Path, key: ArmKey) -> ArmCounts:
    """What the node has counted for one arm."""
    return read_all(run_folder(home))[key]


def is_settled(counts: ArmCounts) -> bool:
    """Whether nothing is under way."""
    return counts.dispatched == counts.ok == counts.total.count == counts.queue.count


def _moved(before: ArmCounts, after: ArmCounts, name: str) -> int:
    old, new = getattr(before, name), getattr(after, name)
    return int(new.count - old.count if isinstance(new, Histogram) else new - old)


@pytest.mark.server
@pytest.mark.beside
def test_a_version_leaves_the_events_that_its_life_names(home_with_store: Path) -> None:
    text = (DOCS / "life-of-a-version.md").read_text()
    named = column(text, "What the event log shows")
    assert len(named) >= 5
    with opened(home_with_store) as ctx:
        for factor in (3.0, 5.0):
            register(ctx, "scale", scale(factor))
        live = release_now(ctx, "scale", "1")
        with RunningNode(home_with_store) as node:
            finish(ctx.ledger, live.id)
            until(lambda: node.answers("scale", 6.0), "version 1")
            finish(ctx.ledger, release_now(ctx, "scale", "2").id)
            until(lambda: node.answers("scale", 10.0), "version 2")
            finish(ctx.ledger, rollback(ctx, "scale").id)
            until(lambda: node.answers("scale", 6.0), "version 1 again")
        events = ctx.ledger.events("scale")
    releases = named[1:]
    assert [event.kind for event in events] == [named[0]] * 2 + releases * 3
    assert [event.body["release"] for event in events[2:]] == [1] * 4 + [2] * 4 + [3] * 4
    assert decided(events) == releases[1:] * 3
    assert replay(events) == []
    assert set(column(text, "2. Released")) == set(ReleaseState)


def scale(factor: float) -> onnx.ModelProto:
    """A model that multiplies two columns by a factor."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 2]) for n in ("x", "y"))
    k = onnx.helper.make_tensor("k", onnx.TensorProto.FLOAT, [1], [factor])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "k"], ["y"])], "g", [x], [y], [k])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def finish(ledger: Ledger, release: int) -> None:
    """Wait until a release is done."""
    until(lambda: ledger.release(release).state.finished, f"the end of release {release}")
    assert ledger.release(release).state is ReleaseState.DONE, ledger.release(release).reason


def decided(events: list[Event]) -> list[str]:
    """The kinds of the events that carry the snapshot on which they were decided."""
    return [event.kind for event in events if "snapshot" in event.body]
