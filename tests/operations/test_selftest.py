"""The parts of a self-test: what is asked, how a fault is aimed at it, what is refused, what is removed."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest

from interlock.codec.v2infer import Codec
from interlock.core.errors import CheckFailed, ConfigError, ModelNotFound, NodeUnreachable, ReleaseRefused
from interlock.core.fault import Fault, selftest_model
from interlock.core.model import DATATYPES, Capabilities, Signature, TensorSpec, artifact_path
from interlock.core.settings import run_folder
from interlock.operations import release, selftest, selftest_traffic
from interlock.operations import selftest_model as owned
from interlock.operations.certificate import leave_certificate
from interlock.operations.context import Context
from interlock.operations.discovery import NodeFile
from interlock.operations.selftest import Plan
from interlock.operations.selftest_traffic import REQUESTS, Traffic, aimed, encoded, made_up
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.runtime.fault import marked
from tests.operations.homes import a_home, a_version, carry_out, carrying_out, release_and_carry_out
from tests.rollout.histories import GOOD, a_shadow

pytestmark = pytest.mark.slow

ALL = Signature(
    tuple(TensorSpec(name, name, (-1, 2)) for name in DATATYPES), (TensorSpec("y", "INT64", (-1,)),)
)
HIDDEN = selftest_model("iris")


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=2)
    for version in context.ledger.versions():
        artifact_path(context.home, version.digest).mkdir(parents=True)
    yield context
    context.close()


# What is asked


@pytest.mark.parametrize("batch_axis", [0, None])
def test_what_is_made_up_arrives_as_a_fault_is_drawn_by(batch_axis: int | None) -> None:
    signature = msgspec.structs.replace(ALL, batch_axis=batch_axis)
    requests, codec = made_up(signature, None), Codec("m", "1", signature)
    assert len(requests) == REQUESTS
    for one in requests[:20]:
        body, headers = encoded(signature, one)
        inputs, *_ = codec.decode(body, int(headers["inference-header-content-length"]))
        assert inputs.keys() == one.keys()
        arrived = {name: np.asarray(array) for name, array in inputs.items()}
        for name, array in one.items():
            assert arrived[name].dtype == array.dtype and np.array_equal(arrived[name], array)
        fault = Fault("fail", 0.5)
        assert np.array_equal(marked(arrived, fault, batch_axis == 0), marked(one, fault, batch_axis == 0))


def test_rows_of_a_file_are_asked_in_turn() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), ALL.outputs)
    rows = np.arange(6.0).reshape(3, 2)
    found = made_up(signature, {"x": rows})
    assert [one["x"].tolist() for one in found[:4]] == [[[0, 1]], [[2, 3]], [[4, 5]], [[0, 1]]]
    with pytest.raises(CheckFailed):
        made_up(signature, {"x": np.zeros((3, 5))})


@pytest.mark.parametrize(
    ("level", "values", "off"), [(0.05, REQUESTS, 0.005), (0.3, 40, 0.03), (0.05, 2, 0.45), (1.0, 1, 0.0)]
)
def test_a_fault_meets_its_share_of_the_requests_as_near_as_they_allow(
    level: float, values: int, off: float
) -> None:
    requests = [{"x": np.array([k % values])} for k in range(REQUESTS)]
    fault, share = aimed(Fault("fail", level), requests, has_rows=True)
    assert share == np.mean([marked(one, fault)[0] for one in requests])
    assert 0 < share and abs(share - level) <= off + 1e-9


def test_a_fault_that_no_seed_aims_at_is_none() -> None:
    assert aimed(Fault("fail", 1e-9), [{"x": np.array([1])}], has_rows=True)[1] == 0.0


class _Half(BaseHTTPRequestHandler):
    """Answers every second request of a connection well."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        self.send_response(200 if self.asked % 2 else 500)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words: Any) -> None:
        pass


def test_traffic_keeps_its_rate_and_counts_what_failed() -> None:
    with HTTPServer(("127.0.0.1", 0), _Half) as server, mock.patch.object(selftest_traffic, "CONNECTIONS", 1):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        traffic = Traffic(f"http://127.0.0.1:{server.server_port}", "m", [(b"{}", {})], 200.0)
        began_s = time.monotonic()
        with traffic.flowing():
            while traffic.asked < 40:
                assert time.monotonic() < began_s + 30
                time.sleep(0.005)
            took_s = time.monotonic() - began_s
        server.shutdown()
    assert took_s > 39 / 200 - selftest_traffic._LATE_S, "no faster than the rate"
    assert traffic.failed == traffic.asked // 2 and traffic.told.startswith("500 {}")


# What is refused


def test_a_plan_without_anything_to_try_is_none() -> None:
    for wrong in ({"trials": 0, "faults": ()}, {"trials": -1}, {"rate_per_s": 5000.0}, {"rate_per_s": 0.0}):
        with pytest.raises(ConfigError):
            Plan(**wrong)


def test_without_a_node_there_is_nothing_to_try(ctx: Context) -> None:
    with pytest.raises(NodeUnreachable, match="no node runs"):
        selftest.selftest(ctx, "iris")


@pytest.fixture
def node(ctx: Context) -> Iterator[None]:
    with mock.patch.object(selftest, "find_node", return_value=NodeFile("local", 1, "127.0.0.1", 1, 2)):
        yield


def test_what_cannot_be_copied_is_told_and_nothing_is_run(ctx: Context, node: None) -> None:
    with pytest.raises(ModelNotFound):
        selftest.selftest(ctx, "rose")
    with pytest.raises(ReleaseRefused, match="no version of 'iris' is live.*interlock release iris --now"):
        selftest.selftest(ctx, "iris")
    for number, (capabilities, words) in enumerate(
        [
            (Capabilities(side_effect_free=False), "has side effects .*under another name"),
            (Capabilities(streaming=True), "answers in a stream"),
        ],
        3,
    ):
        version = msgspec.structs.replace(a_version("iris", str(number)), capabilities=capabilities)
        ctx.ledger.put_version(version, 1.0)
        release_and_carry_out(ctx, "iris", str(number))
        with pytest.raises(ReleaseRefused, match=words):
            selftest.selftest(ctx, "iris")
    assert [model.name for model in ctx.ledger.models()] == ["iris"]


def test_a_model_that_answers_nothing_made_up_is_told_of_data(ctx: Context, node: None) -> None:
    """Nobody listens at the node's port: every request fails."""
    release_and_carry_out(ctx, "iris", "1")
    with carrying_out(ctx), mock.patch.object(owned, "GONE_WITHIN_S", 0.1):
        with pytest.raises(ReleaseRefused, match="answers none of .* requests .*--data FILE"):
            selftest.selftest(ctx, "iris", Plan(rate_per_s=1000.0))
        with pytest.raises(ReleaseRefused, match="is what a self-test runs on"):
            selftest.selftest(ctx, HIDDEN)
    assert [model.name for model in ctx.ledger.models()] == ["iris"]


# What is taken away


def leave_one(ctx: Context) -> int:
    """What a command that was killed leaves: a live copy, and a canary under way."""
    for number in ("1", "2"):
        version = a_version("iris", number)
        fault = Fault("fail", 0.1) if number == "2" else None
        ctx.ledger.put_version(msgspec.structs.replace(version, model=HIDDEN, fault=fault), 1.0)
    carry_out(ctx, release.release_now(ctx, HIDDEN, "1"))
    return release.release_canary(ctx, HIDDEN, "2").id


def test_control_takes_away_in_two_looks_what_nobody_holds(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    row = leave_one(ctx)
    owned.tidy(ctx)
    assert ctx.ledger.live(HIDDEN) is None and ctx.ledger.release(row).state is ReleaseState.SUPERSEDED
    owned.tidy(ctx)
    assert [model.name for model in ctx.ledger.models()] == ["iris"]
    live = ctx.ledger.live("iris")
    assert live is not None and live.number == "1"
    stood = ctx.ledger.data_version()
    owned.tidy(ctx)
    assert not ctx.ledger.changed(stood)


def test_what_a_command_holds_is_left_alone_and_a_second_one_refused(ctx: Context) -> None:
    with mock.patch.object(owned, "GONE_WITHIN_S", 0.05), owned.alone(ctx):
        row = leave_one(ctx)
        owned.tidy(ctx)
        assert not ctx.ledger.release(row).state.finished
        with (
            mock.patch.object(owned, "LOCK_WITHIN_S", 0.05),
            pytest.raises(ReleaseRefused, match="another self-test"),
            owned.alone(ctx),
        ):
            pass
    assert ctx.ledger.model(HIDDEN) is None
    with (run_folder(ctx.home) / "selftest.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is given back


def test_the_next_self_test_begins_without_what_was_left(ctx: Context) -> None:
    leave_one(ctx)
    with mock.patch.object(owned, "GONE_WITHIN_S", 0.05), owned.alone(ctx):
        assert ctx.ledger.model(HIDDEN) is None


def test_a_version_with_a_fault_cannot_be_released_of_another_model(ctx: Context) -> None:
    """Even if a record had come into the ledger some other way."""
    faulty = msgspec.structs.replace(a_version("iris", "2"), fault=Fault("nan", 0.1))
    release_and_carry_out(ctx, "iris", "1")
    with mock.patch.object(ctx.ledger, "version", return_value=faulty):
        asks: list[Callable[..., ReleaseRow]] = [release.release_now, release.release_canary]
        for ask in [*asks, release.release_blue_green]:
            with pytest.raises(ConfigError, match="only a self-test's own model"):
                ask(ctx, "iris", "2")
    assert ctx.ledger.open_releases() == []


def test_a_self_test_leaves_no_certificate(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    assert leave_certificate(ctx, msgspec.structs.replace(row, model=HIDDEN)) is None
    assert leave_certificate(ctx, row) is not None
