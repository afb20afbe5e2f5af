"""What status, models and events tell, with and without a node."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.core.errors import ModelNotFound
from interlock.core.letters import ChildStatus, VersionState
from interlock.operations import status
from interlock.operations.context import Context
from tests.operations.homes import a_home, a_node, a_report, a_status, release_and_carry_out


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=11, rose=1)
    release_and_carry_out(context, "iris", "2")
    yield context
    context.close()


def test_without_a_node(ctx: Context) -> None:
    found = status.status(ctx, None)
    assert found.node is None and found.not_ready == "no node runs here"
    assert [(m.name, m.live, m.newest, m.versions) for m in found.models] == [
        ("iris", "2", "11", 11),
        ("rose", None, "1", 1),
    ]


def test_ready_counts_workers_that_answer_with_the_live_version(ctx: Context) -> None:
    node = a_node(
        a_report("worker-0", a_status("iris", "2", VersionState.READY)),
        a_report("worker-1", a_status("iris", "2", VersionState.LOADING), ready=False),
        a_report("x-iris-2", a_status("iris", "2", VersionState.READY)),
        workers=2,
    )
    found = status.status(ctx, node)
    assert found.models[0].ready == 1
    assert found.not_ready == "worker-1 is not ready: iris/2 loading"


@pytest.mark.parametrize(
    ("workers", "reports", "reason"),
    [
        (2, [a_report("worker-0"), a_report("worker-1")], ""),
        (2, [a_report("worker-0")], "1 of 2 workers have reported"),
        (1, [a_report("control")], "no worker of 1 has reported yet"),
    ],
)
def test_why_not_ready(workers: int, reports: list[object], reason: str) -> None:
    assert status.why_not_ready(a_node(*reports, workers=workers)) == reason  # type: ignore[arg-type]


def test_the_supervisor_tells_of_executors_and_of_restarts() -> None:
    children = (
        ChildStatus("worker-0", 11, 1, ready=True, restarts=2),
        ChildStatus("x-slow-1", 12, 5, ready=True, resident_bytes=99),
        ChildStatus("x-slow-2", 13, 6, ready=False, leaving=True),
        ChildStatus("x-slow-3", restarts=7),
    )
    supervisor = msgspec.structs.replace(a_report("supervisor"), children=children)
    found = status.join_children(a_node(supervisor, a_report("worker-0"), a_report("control")).processes)
    by_name = {process.report.process: process for process in found}
    assert list(by_name) == ["control", "supervisor", "worker-0", "x-slow-1", "x-slow-2", "x-slow-3"]
    assert by_name["worker-0"].restarts == 2 and by_name["worker-0"].report.pid == 4242
    first, leaving, waiting = (by_name[f"x-slow-{n}"] for n in "123")
    assert (first.report.pid, first.report.resident_bytes, first.up, first.report.ready) == (
        12,
        99,
        True,
        True,
    )
    assert leaving.report.draining and not leaving.report.ready
    assert not waiting.up and waiting.restarts == 7
    assert not any(status.is_worker(process) for process in (first, leaving, waiting))


def test_versions_say_where_each_one_stands(ctx: Context) -> None:
    node = a_node(
        a_report(
            "worker-0",
            a_status("iris", "2", VersionState.READY),
            a_status("iris", "11", VersionState.FAILED, "no memory"),
        )
    )
    found = status.versions(ctx, "iris", node)
    assert [version.number for version in found][:3] == ["11", "10", "9"]
    assert (found[0].state, found[0].reason, found[0].ready) == ("failed", "no memory", 0)
    live = next(version for version in found if version.live)
    assert (live.number, live.state, live.ready, live.runtime) == ("2", "ready", 1, "onnx")
    with pytest.raises(ModelNotFound, match="'tulip'"):
        status.versions(ctx, "tulip", node)


def test_events_come_newest_or_after_a_number_and_are_bounded(ctx: Context) -> None:
    every = status.events(ctx, None, 0, 1000)
    assert status.events(ctx, None, None, 3) == every[-3:]
    assert status.events(ctx, "rose", 0, 10) == [event for event in every if event.model == "rose"]
    assert len(status.events(ctx, None, 0, -5)) == 1


@pytest.mark.slow
def test_models_that_plain_mlflow_code_registered_are_listed(ctx: Context) -> None:
    client = ctx.registry.client
    client.create_registered_model("tulip 'red'")
    client.create_model_version("tulip 'red'", source=str(ctx.home), run_id=None)
    client.set_registered_model_alias("tulip 'red'", "champion", "1")
    names = [model.name for model in status.models(ctx, None)]
    assert names == ["iris", "rose", "tulip 'red'"]
    (version,) = status.versions(ctx, "tulip 'red'", None)
    assert (version.number, version.aliases, version.digest) == ("1", ("champion",), "")
