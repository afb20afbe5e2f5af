"""A Python class that streams is recognised, checked and held to what it says; broken ones are refused."""

from pathlib import Path

import numpy as np
import pytest

from interlock.core.errors import CheckFailed, InterlockError, LoadFailed, OutputMismatch, PredictFailed
from interlock.core.model import Placement, Signature, Tensors, TensorSpec, Version
from interlock.runtime.catalog import inspector_of, runtime_of
from interlock.runtime.check import check
from interlock.runtime.check_process import run_check
from interlock.runtime.protocol import Streams, streams_of

pytestmark = pytest.mark.slow

SIGNATURE = '    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1])}}\n'
HEAD = "import itertools, time\nimport numpy as np\nclass Model:\n"
COUNT_DOWN = """
    def stream(self, inputs):
        for left in range(5, 0, -1):
            yield {"y": np.full(left, inputs["x"].sum(), np.float32)}
"""


def version_of(folder: Path, body: str, signature: str = SIGNATURE) -> Version:
    (folder / "model.py").write_text(HEAD + signature + body)
    return Version("m", "1", "sha256:" + "0" * 64, "python", "model.py:Model", Signature((), ()))


def load(folder: Path, body: str) -> Streams:
    version = version_of(folder, body)
    return streams_of(runtime_of("python").load(folder, version), version)


def test_a_class_that_streams_passes_in_a_process_of_its_own(tmp_path: Path) -> None:
    report = run_check(tmp_path, version_of(tmp_path, COUNT_DOWN))
    assert [result.name for result in report.results] == [
        "loads",
        "one request",
        "deterministic",
        "requested outputs only",
        "wrong shape raises",
        "stops when closed",
    ]
    assert report.capabilities.streaming and report.capabilities.deterministic
    assert not report.capabilities.batchable and not report.capabilities.thread_safe
    assert report.signature.batch_axis is None and report.placement is Placement.EXECUTOR
    assert set(report.profile.batch_s) == {1} and report.profile.batch_s[1] > 0


def test_its_signature_is_seen_in_a_first_part(tmp_path: Path) -> None:
    version = version_of(tmp_path, COUNT_DOWN, signature="")
    report = check(tmp_path, version, {"x": np.ones((3, 2), np.float32)})
    assert report.failures == () and not report.generated
    assert report.signature == Signature(
        (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),), None
    )
    with pytest.raises(LoadFailed, match="no `signature`"):
        check(tmp_path, version)


def test_a_stream_without_an_end_is_read_for_a_while(tmp_path: Path) -> None:
    body = """
    def stream(self, inputs):
        for number in itertools.count():
            yield {"y": np.full(1, number, np.float32)}
"""
    report = check(tmp_path, version_of(tmp_path, body))
    assert report.failures == () and "1000 parts and going on" in report.results[1].detail


@pytest.mark.parametrize(
    ("body", "streams"),
    [
        (COUNT_DOWN + "    def predict(self, inputs):\n        return {}\n", False),
        (COUNT_DOWN + "    def predict(self, inputs):\n        return {}\n    streaming = True\n", True),
        (COUNT_DOWN, True),
    ],
)
def test_with_both_methods_the_class_says_which(tmp_path: Path, body: str, streams: bool) -> None:
    version = version_of(tmp_path, body)
    assert bool(inspector_of("python").declared(tmp_path, version).get("streaming")) is streams
    assert isinstance(runtime_of("python").load(tmp_path, version), Streams) is streams


BROKEN = {
    "no part": ("    def stream(self, inputs):\n        yield from ()\n", "had no part"),
    "raises": (
        "    def stream(self, inputs):\n        raise ValueError('odd')\n        yield\n",
        "ValueError",
    ),
    "no iterator": ("    def stream(self, inputs):\n        return 7\n", "TypeError"),
    "no dict": ("    def stream(self, inputs):\n        yield [1.0]\n", "gave a list"),
    "another dtype later": (
        COUNT_DOWN + '        yield {"y": np.zeros(1)}\n',
        "a part of the stream has float64",
    ),
    "another name later": (COUNT_DOWN + '        yield {"z": np.zeros(1, "f4")}\n', "'y' is missing"),
    "declared batchable": (COUNT_DOWN + "    batchable = True\n", "one request at a time"),
    "declared deterministic": (
        """
    deterministic = True
    calls = 0
    def stream(self, inputs):
        self.calls += 1
        yield {"y": np.full(1, self.calls, np.float32)}
""",
        "two equal requests differ",
    ),
    "goes on when closed": (
        """
    def stream(self, inputs):
        for number in range(5):
            try:
                yield {"y": np.full(1, number, np.float32)}
            except GeneratorExit:
                pass
""",
        "close raised RuntimeError",
    ),
    "takes long to close": (
        """
    def stream(self, inputs):
        try:
            yield {"y": np.zeros(1, np.float32)}
            yield {"y": np.zeros(1, np.float32)}
        except GeneratorExit:
            time.sleep(0.6)
""",
        "0.6 s to close, the limit is 0.5 s",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_refused(name: str, tmp_path: Path) -> None:
    body, words = BROKEN[name]
    with pytest.raises(CheckFailed, match=words):
        run_check(tmp_path, version_of(tmp_path, body))


def test_streaming_without_a_stream_is_refused(tmp_path: Path) -> None:
    body = "    def predict(self, inputs):\n        return {}\n"
    version = version_of(tmp_path, body)
    with pytest.raises(LoadFailed, match="recorded as streaming"):
        streams_of(runtime_of("python").load(tmp_path, version), version)
    other = tmp_path / "other"  # a module is imported once for each path
    other.mkdir()
    with pytest.raises(LoadFailed, match=r"no stream\(inputs\)"):
        load(other, "    streaming = True\n" + body)


def test_the_generator_of_the_class_is_closed_with_the_stream(tmp_path: Path) -> None:
    model = load(
        tmp_path,
        """
    closed = 0
    def stream(self, inputs):
        try:
            while True:
                yield {"y": np.zeros(2, np.float32), "more": np.zeros(1)}
        finally:
            self.closed += 1
""",
    )
    inputs: Tensors = {"x": np.ones((1, 2), np.float32)}
    parts = model.stream(inputs, ("y",))
    assert list(next(parts)) == ["y"]
    parts.close()
    assert model.instance.closed == 1  # type: ignore[attr-defined]
    with pytest.raises(PredictFailed, match="call `stream`"):
        model.predict(inputs)
    with pytest.raises(InterlockError, match=r"got \[1, 3\]"):
        next(model.stream({"x": np.ones((1, 3), np.float32)}))
    other = tmp_path / "other"
    other.mkdir()
    model = load(other, '    def stream(self, inputs):\n        yield {"y": np.zeros((1, 1))}\n')
    with pytest.raises(OutputMismatch):
        next(model.stream(inputs))
