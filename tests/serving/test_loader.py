"""The loader with real ONNX files and a real executor: loaded beside, swapped in, drained, given back."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
from msgspec.structs import replace

from interlock.core.errors import ModelNotFound, NotReady, Quarantined, VersionNotFound
from interlock.core.fault import Fault
from interlock.core.letters import Desired, ModelDesired, VersionState
from interlock.core.model import (
    Capabilities,
    Model,
    Placement,
    Profile,
    Signature,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.core.request import Request
from interlock.core.route import COPY_ARM, Arm, Mirror, Route, single
from interlock.core.state import ArmCounts, ArmKey, PairCounts
from interlock.runtime.fault import FaultInjected
from interlock.serving.block import Block
from interlock.serving.block_reader import read_block
from interlock.serving.infer import Infer
from interlock.serving.loader import Loader, _load_here
from tests.serving.executor_process import Executor, until
from tests.serving.fakes import FakeSink, begin

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
MODEL = Model("m")
TWICE = """
class Model:
    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""


def put(home: Path, number: str, factor: float, placement: Placement = Placement.INLINE) -> Version:
    """An ONNX version in the cache that multiplies by `factor`."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 2]) for n in ("x", "y"))
    value = onnx.helper.make_tensor("k", onnx.TensorProto.FLOAT, [1], [factor])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "k"], ["y"])], "scale", [x], [y], initializer=[value]
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    folder = home / "artifacts" / f"new-{number}-{factor}"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    digest = digest_of(folder)
    folder.rename(artifact_path(home, digest))
    return Version(
        "m", number, digest, "onnx", "model.onnx", SIGNATURE, Capabilities(max_batch_rows=16), placement
    )


class Rig:
    """A loader with the front that it serves, as a worker has them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.block = Block.create(home / "run", "worker-0", 1)
        self.infer = Infer(self.block, 1, dict)
        self.changes = 0
        self.loader = Loader(home, self.infer, self.block, 1, self._changed)
        self.revision = 0

    def _changed(self) -> None:
        self.changes += 1

    def apply(self, *versions: Version, route: Route | None = None) -> int:
        """The next Desired: these versions of the model; none at all without versions."""
        self.revision += 1
        models = (ModelDesired(MODEL, versions, route),) if versions else ()
        self.loader.apply(Desired("local", self.revision, models), {})
        return self.revision

    async def carry_out(self, *versions: Version, route: Route | None = None) -> None:
        revision = self.apply(*versions, route=route)
        await until(lambda: self.loader.done_revision >= revision)

    def begin(self, number: str | None = None) -> FakeSink:
        sink = FakeSink()
        now = time.monotonic()
        inputs = {"x": np.ones((1, 2), np.float32)}
        target = self.infer.choose("m", number, None)
        begin(target.lane, Request("m", inputs, 1, now + 20.0, now), sink, b"id", target.slot)
        return sink

    async def ask(self, number: str | None = None) -> float:
        sink = self.begin(number)
        await until(lambda: sink.settled)
        assert sink.response is not None, sink.error
        return float(sink.response.outputs["y"][0, 0])

    def states(self) -> dict[str, VersionState]:
        return {status.number: status.state for status in self.loader.statuses()}

    def reason(self, number: str) -> str:
        return next(status.reason for status in self.loader.statuses() if status.number == number)


@pytest.fixture
async def rig(interlock_home: Path) -> AsyncIterator[Rig]:
    rig = Rig(interlock_home)
    yield rig
    await rig.loader.close()
    rig.block.close()


@pytest.mark.parametrize("placement", [Placement.INLINE, Placement.THREAD])
async def test_a_version_is_loaded_beside_swapped_in_and_the_old_one_is_given_back(
    rig: Rig, placement: Placement
) -> None:
    one, two = put(rig.home, "1", 2.0, placement), put(rig.home, "2", 3.0, placement)
    assert not rig.infer.ready
    with pytest.raises(ModelNotFound, match="'m' is not served here"):
        rig.begin()
    rig.apply(one, route=single("1", 1))
    with pytest.raises(NotReady, match="version 1 is loading"):
        rig.begin()
    await until(lambda: rig.infer.ready)
    assert await rig.ask() == 2.0 and rig.loader.done_revision == 1

    stop, answers = asyncio.Event(), []

    async def keep_asking() -> None:
        while not stop.is_set():
            answers.append(await rig.ask())
            await asyncio.sleep(0)

    asking = asyncio.create_task(keep_asking())
    await rig.carry_out(one, two, route=single("1", 1))
    assert rig.states() == {"1": VersionState.READY, "2": VersionState.READY}
    assert await rig.ask() == 2.0 and await rig.ask("2") == 3.0
    await rig.carry_out(one, two, route=single("2", 2))
    assert await rig.ask() == 3.0
    await rig.carry_out(two, route=single("2", 2))
    stop.set()
    await asking
    assert rig.states() == {"2": VersionState.READY} and rig.infer.ready
    with pytest.raises(VersionNotFound, match=r"'1' of model 'm' is not loaded; loaded: \['2'\]"):
        rig.begin("1")
    assert answers == sorted(answers) and set(answers) <= {2.0, 3.0}, "from the old to the new, once"
    await rig.carry_out()
    with pytest.raises(ModelNotFound):
        rig.begin()
    assert rig.states() == {}


async def test_both_arms_of_a_route_answer_and_are_counted_apart(rig: Rig) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    arms = (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5))
    await rig.carry_out(one, two, route=Route(7, 3, "s", arms))
    found = [rig.infer.choose("m", None, b"user-%d" % k) for k in range(200)]
    assert {target.version.number for target in found} == {"1", "2"}
    assert {(target.slot.key.release, target.slot.key.epoch, target.slot.key.arm) for target in found} == {
        (7, 3, 0),
        (7, 3, 1),
    }


async def test_a_mirrored_route_compares_real_versions(rig: Rig) -> None:
    """x times 2 against x times 3 in the same loop: the client's answer, its copy, and what is counted."""
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    arms = (Arm(0, "incumbent", "1", 1.0), Arm(1, "candidate", "2", 0.0))
    await rig.carry_out(one, two, route=Route(7, 3, "s", arms, Mirror(1, shadow=1.0)))
    target = rig.infer.choose("m", None, None)
    now = time.monotonic()
    sinks = [FakeSink() for _ in range(5)]
    inputs = {"x": np.ones((1, 2), np.float32)}
    target.submit([(Request("m", inputs, 1, now + 20.0, now), sink) for sink in sinks])
    answers = [sink.response.outputs["y"][0, 0] for sink in sinks if sink.response is not None]
    assert answers == [2.0] * 5, "answered before the copies begin"

    def pairs() -> PairCounts:
        view = read_block(rig.block.path)
        assert view is not None
        return view.counts.get(ArmKey("m", "2", 7, 3, COPY_ARM), ArmCounts()).pairs

    await until(lambda: pairs().disagreed)
    found = pairs()
    assert (found.good, found.disagreed, found.slower + found.faster, found.dropped) == (5, 5, 1, 0)


async def test_a_mirror_of_side_effects_is_refused_in_the_log_and_the_old_route_stays(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    two = replace(two, capabilities=replace(two.capabilities, side_effect_free=False))
    await rig.carry_out(one, two, route=single("1", 1))
    arms = (Arm(0, "incumbent", "1", 0.0), Arm(1, "candidate", "2", 1.0))
    revision = rig.apply(one, two, route=Route(2, 0, "s", arms, Mirror(1, reverse=1.0)))
    assert await rig.ask() == 2.0 and rig.loader.done_revision < revision
    refused = [record for record in caplog.records if record.getMessage() == "route refused"]
    assert "has side effects" in refused[0].__dict__["fields"]["reason"]


async def test_what_is_under_way_is_answered_before_its_version_is_given_back(rig: Rig) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    await rig.carry_out(one, two, route=single("1", 1))
    begun = [rig.begin() for _ in range(5)]
    rig.apply(two, route=single("2", 2))
    assert rig.states()["1"] is VersionState.DRAINING and not begun[0].settled
    begun.append(rig.begin())
    await until(lambda: rig.loader.done_revision == rig.revision)
    answers = [float(sink.response.outputs["y"][0, 0]) for sink in begun if sink.response is not None]
    assert answers == [2.0] * 5 + [3.0]


async def test_a_version_wanted_again_while_it_drains_is_not_loaded_anew(rig: Rig) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    await rig.carry_out(one, two, route=single("1", 1))
    sink = rig.begin()
    rig.apply(two, route=single("2", 2))
    shutil.rmtree(artifact_path(rig.home, one.digest))
    rig.apply(one, two, route=single("1", 3))
    assert rig.loader.done_revision == rig.revision and await rig.ask() == 2.0 and sink.settled


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("bytes", "has digest sha256:"),
        ("gone", "is not in the cache; release the version again"),
        ("no model", "digest"),
        ("memory", "of memory, "),
        ("python", "runs code of the model's author: want placement executor, got inline"),
        ("runtime", "caffe"),
        ("signature", "warm-up failed"),
        ("outputs", "warm-up failed: output 'y' has dtype float32, the signature wants float64"),
    ],
)
async def test_a_version_that_cannot_be_loaded_says_why_and_the_old_one_stays(
    rig: Rig, harm: str, said: str
) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    folder = artifact_path(rig.home, two.digest)
    match harm:
        case "bytes":
            (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
        case "gone":
            shutil.rmtree(folder)
        case "no model":
            (folder / "model.onnx").unlink()
        case "memory":
            two = replace(two, profile=Profile(resident_bytes=1 << 60))
        case "python":
            two = replace(two, runtime="python")
        case "runtime":
            two = replace(two, runtime="caffe")
        case "signature":
            two = replace(two, signature=Signature((TensorSpec("z", "FP32", (-1, 9)),), SIGNATURE.outputs))
        case "outputs":
            two = replace(two, signature=Signature(SIGNATURE.inputs, (TensorSpec("y", "FP64", (-1, 2)),)))
    await rig.carry_out(one, route=single("1", 1))
    rig.apply(two, route=single("2", 2))
    await until(lambda: rig.states().get("2") is VersionState.FAILED)
    assert said in rig.reason("2")
    assert await rig.ask() == 2.0 and rig.infer.ready and rig.loader.done_revision == 1
    assert rig.states()["1"] is VersionState.READY
    with pytest.raises(NotReady, match="version 2 is failed"):
        rig.begin("2")
    # Taken back: the failed one is forgotten, and nothing else has changed.
    await rig.carry_out(one, route=single("1", 1))
    assert rig.states() == {"1": VersionState.READY} and await rig.ask() == 2.0


async def test_a_failed_version_is_tried_again_under_the_next_desired(rig: Rig) -> None:
    one = put(rig.home, "1", 2.0)
    folder = artifact_path(rig.home, one.digest)
    aside = folder.with_name("aside")
    folder.rename(aside)
    rig.apply(one, route=single("1", 1))
    await until(lambda: rig.states()["1"] is VersionState.FAILED)
    aside.rename(folder)
    changes = rig.changes
    await asyncio.sleep(0)
    assert rig.states()["1"] is VersionState.FAILED and rig.changes == changes, "not again and again"
    await rig.carry_out(one, route=single("1", 1))
    assert await rig.ask() == 2.0


async def test_a_quarantined_version_answers_with_the_reason_and_comes_back_when_that_is_lifted(
    rig: Rig,
) -> None:
    one, two = put(rig.home, "1", 2.0), put(rig.home, "2", 3.0)
    arms = (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5))
    await rig.carry_out(one, two, route=Route(1, 0, "s", arms))
    begun = rig.begin("2")
    rig.loader.quarantine({two.key: "crashed 5 times"})
    assert isinstance(begun.error, Quarantined)
    with pytest.raises(Quarantined, match="version 2 of model 'm' is quarantined: crashed 5 times"):
        rig.begin("2")
    assert await rig.ask("1") == 2.0, "the other arm serves on"
    assert rig.states() == {"1": VersionState.READY, "2": VersionState.QUARANTINED}
    rig.loader.quarantine({})
    await until(lambda: rig.states()["2"] is VersionState.READY)
    assert await rig.ask("2") == 3.0


async def test_a_quarantined_version_is_not_loaded_at_all(rig: Rig) -> None:
    one = put(rig.home, "1", 2.0)
    rig.loader.apply(Desired("local", 1, (ModelDesired(MODEL, (one,), single("1", 1)),)), {one.key: "bad"})
    assert rig.states() == {"1": VersionState.QUARANTINED} and rig.reason("1") == "bad"
    with pytest.raises(Quarantined, match="bad"):
        rig.begin()


async def test_the_same_number_with_other_contents_replaces_the_older(rig: Rig) -> None:
    old, new = put(rig.home, "1", 2.0), put(rig.home, "1", 5.0)
    await rig.carry_out(old, route=single("1", 1))
    await rig.carry_out(new, route=single("1", 2))
    assert await rig.ask() == await rig.ask("1") == 5.0
    assert [status.digest for status in rig.loader.statuses()] == [new.digest]


async def test_many_swaps_leave_one_version_and_a_quiet_block(rig: Rig) -> None:
    versions = [put(rig.home, str(number), float(number)) for number in (1, 2, 3)]
    await rig.carry_out(versions[0], route=single("1", 1))
    for release in range(2, 12):
        version = versions[release % 3]
        rig.apply(version, route=single(version.number, release))  # no waiting for the one before
    await until(lambda: rig.loader.done_revision == rig.revision)
    assert await rig.ask() == float(versions[11 % 3].number) and len(rig.states()) == 1


async def test_an_executor_serves_and_is_waited_for_when_it_dies(rig: Rig) -> None:
    executor = Executor(rig.home, TWICE)
    version = executor.version
    try:
        rig.apply(version, route=single("1", 1))
        executor.start()
        await until(lambda: rig.infer.ready)
        assert await rig.ask() == 2.0 and rig.infer.model_ready("m", None)
        executor.stop()
        await until(lambda: not rig.infer.model_ready("m", None))
        assert "expected back" in rig.reason("1")
        waiting = rig.begin()
        executor.start()
        await until(lambda: waiting.settled)
        assert waiting.response is not None and waiting.response.outputs["y"].tolist() == [[2.0, 2.0]]
        assert rig.states() == {"1": VersionState.READY} and rig.reason("1") == ""
        await rig.carry_out()
    finally:
        executor.stop()


@pytest.mark.parametrize("placement", Placement)
async def test_a_fault_is_loaded_of_no_model_but_a_self_tests(rig: Rig, placement: Placement) -> None:
    plain, faulty = put(rig.home, "1", 2.0), replace(put(rig.home, "2", 3.0), placement=placement)
    await rig.carry_out(plain, route=single("1", 1))
    rig.apply(plain, replace(faulty, fault=Fault("nan", 1.0)), route=single("2", 2))
    await until(lambda: rig.states()["2"] is VersionState.FAILED)
    assert "only a self-test's own model may have" in rig.reason("2")
    assert await rig.ask() == 2.0, "what was live answers"


def test_a_version_of_a_self_test_has_its_fault_after_the_warm_up(interlock_home: Path) -> None:
    version = replace(put(interlock_home, "1", 2.0), model="m:selftest", fault=Fault("fail", 1.0))
    loaded = _load_here(interlock_home, version)  # which predicts once, well
    with pytest.raises(FaultInjected):
        loaded.predict({"x": np.ones((1, 2), np.float32)})
    loaded.close()
