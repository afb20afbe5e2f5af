"""Runs the contract suite over all runtimes on real models, and over broken ones, which it must refuse."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from interlock.core.errors import CheckFailed, DatatypeMismatch, InterlockError, LoadFailed, UnknownFormat
from interlock.core.model import Placement, Profile, Signature, TensorSpec, Version
from interlock.runtime import check_limit
from interlock.runtime.catalog import RUNTIMES, inspector_of, runtime_of
from interlock.runtime.check import CheckReport, check, choose_placement
from interlock.runtime.check_process import run_check
from tests.runtime import models

pytestmark = pytest.mark.slow


Checked = Callable[[str], tuple[Path, Version, CheckReport]]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """A model by its name: its folder, its version and its report, made once for all who only look."""

    @cache
    def run(name: str) -> tuple[Path, Version, CheckReport]:
        folder = tmp_path_factory.mktemp("model")
        version = models.MODELS[name](folder)
        return folder, version, check(folder, version)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_runtime_passes_the_suite(name: str, checked: Checked) -> None:
    _, version, report = checked(name)
    assert report.failures == ()
    assert len(report.results) == 8
    assert report.signature.inputs and report.signature.outputs
    assert report.profile.artifact_bytes > 0 and report.profile.batch_s[1] > 0
    assert report.generated
    if version.runtime != "onnx":
        assert report.placement is Placement.EXECUTOR
    assert isinstance(inspector_of(version.runtime), type(runtime_of(version.runtime)))


def test_what_is_found(checked: Checked) -> None:
    names = ("two inputs, two outputs", "FP16", "fixed rows", "rows that see each other", "plain Python")
    found = {name: checked(name)[2] for name in names}
    both = found["two inputs, two outputs"]
    assert [spec.name for spec in both.signature.inputs] == ["a", "b"]
    assert both.signature.outputs == (TensorSpec("sum", "FP32", (-1, 3)), TensorSpec("gap", "FP32", (-1, 3)))
    assert both.capabilities.batchable and both.capabilities.thread_safe and both.capabilities.deterministic
    assert both.placement is Placement.INLINE and set(both.profile.batch_s) == {1, 8, 32, 128}
    assert found["FP16"].capabilities.tolerance == 1e-2
    assert found["fixed rows"].signature.batch_axis is None
    assert not found["fixed rows"].capabilities.batchable and set(found["fixed rows"].profile.batch_s) == {1}
    assert not found["rows that see each other"].capabilities.batchable
    assert found["plain Python"].capabilities.thread_safe


def test_a_model_without_a_signature_is_told_what_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "class Total:\n    def predict(self, inputs):\n        return {'y': inputs['x'].sum(axis=1)}\n"
    )
    version = models.version("python", "model.py:Total")
    with pytest.raises(LoadFailed, match=r"KeyError: 'x'; it was given 'input' \[5, 2\]"):
        check(tmp_path, version, {"*": np.ones((5, 2))})
    assert check(tmp_path, version, {"x": np.ones((5, 2))}).failures == ()


@pytest.mark.parametrize(
    ("body", "hinted"), [("{'y': inputs['x'].astype('float64')}", False), ("{'y': inputs['z']}", True)]
)
def test_made_up_rows_are_blamed_only_for_what_rows_can_do(body: str, hinted: bool, tmp_path: Path) -> None:
    signature = "{'inputs': {'x': ('FP32', [-1])}, 'outputs': {'y': ('FP32', [-1])}}"
    (tmp_path / "model.py").write_text(
        f"class M:\n    signature = {signature}\n    def predict(self, inputs):\n        return {body}\n"
    )
    (failure,) = check(tmp_path, models.version("python", "model.py:M")).failures
    assert ("the rows were generated" in failure.detail) is hinted


FIXED_BUT_CALLED_BATCHED = """
from interlock.core.model import Signature, TensorSpec

class Pairs:
    signature = Signature((TensorSpec("x", "FP32", (2, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), 0)
    def predict(self, inputs):
        if inputs["x"].shape != (2, 3):
            raise ValueError("two rows, please")
        return {"y": inputs["x"]}
"""


def test_rows_are_joined_only_where_every_input_and_output_has_them(tmp_path: Path) -> None:
    onnx_folder, python_folder = tmp_path / "onnx", tmp_path / "python"
    onnx_folder.mkdir()
    python_folder.mkdir()
    (onnx_folder / "model.onnx").write_bytes(models.shared_table())
    (python_folder / "pairs.py").write_text(FIXED_BUT_CALLED_BATCHED)
    for folder, version in (
        (onnx_folder, models.version("onnx", "model.onnx")),
        (python_folder, models.version("python", "pairs.py:Pairs")),
    ):
        report = check(folder, version)
        assert report.failures == ()
        assert report.signature.batch_axis is None and not report.capabilities.batchable


@pytest.mark.slow
def test_a_classifier_answers_labels_and_probabilities(checked: Checked) -> None:
    folder, version, report = checked("iris MLP with words")
    assert report.signature.outputs == (
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("probabilities", "FP32", (-1, 3)),
    )
    loaded = runtime_of("sklearn").load(folder, version)
    answer = loaded.predict({"input": models.X[:3].astype(np.float32)})
    assert answer["label"].tolist() == ["setosa"] * 3
    assert list(loaded.predict({"input": models.X[:1]}, ("probabilities",))) == ["probabilities"]


def test_strings_may_come_as_bytes(tmp_path: Path) -> None:
    version = models.MODELS["strings"](tmp_path)
    loaded = runtime_of("onnx").load(tmp_path, version)
    words = np.array([[b"a", "ä".encode()], ["b", "c"]], object)
    assert loaded.predict({"x": words})["y"].tolist() == [["a", "ä"], ["b", "c"]]
    with pytest.raises(DatatypeMismatch, match="input 'x': an element is not UTF-8"):
        loaded.predict({"x": np.array([[b"\xff", b"a"]], object)})


def test_bfloat16_is_rounded_to_the_nearest_even(tmp_path: Path) -> None:
    version = models.MODELS["BF16"](tmp_path)
    loaded = runtime_of("onnx").load(tmp_path, version)
    rows = np.array([[1.0, -2.5], [1.00390625, 1.01171875], [np.nan, np.inf], [3e38, -1e-38]], np.float32)
    answer = loaded.predict({"x": rows})["y"]
    assert answer[0].tolist() == [1.0, -2.5]
    assert answer[1].tolist() == [1.0, 1.015625]  # both lie half way: to the even one
    assert np.isnan(answer[2, 0]) and np.isinf(answer[2, 1])
    np.testing.assert_allclose(answer[3], rows[3], rtol=2**-7)
    assert loaded.predict({"x": rows[:0]})["y"].shape == (0, 2)


def test_placement_follows_what_was_measured() -> None:
    small = Profile(batch_s={1: 1e-5, 32: 2e-4, 128: 1e-3}, artifact_bytes=1000)
    assert choose_placement("onnx", small) is Placement.INLINE
    assert choose_placement("python", small) is Placement.EXECUTOR
    assert choose_placement("onnx", Profile(batch_s={1: 1e-5, 32: 3e-4})) is Placement.THREAD
    assert (
        choose_placement("onnx", Profile(batch_s={1: 1e-5}, artifact_bytes=30_000_000)) is Placement.EXECUTOR
    )
    assert choose_placement("onnx", Profile()) is Placement.THREAD


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(UnknownFormat, match=r"'tea'.*onnx"):
        runtime_of("tea")
    assert [runtime_of(name).name for name in RUNTIMES] == list(RUNTIMES)


def zipmap() -> bytes:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    model = to_onnx(LogisticRegression(max_iter=500).fit(models.X, models.Y), models.X[:1].astype(np.float32))
    return bytes(model.SerializeToString())


def outside(folder: Path) -> bytes:
    (folder.parent / "secret").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "../secret"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [models.value("x", TensorProto.FLOAT, ["N", 4])],
        [models.value("y", TensorProto.FLOAT, ["N", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


BROKEN_ONNX: dict[str, Any] = {
    "no protobuf": (lambda folder: b"not a graph", "cannot load model.onnx"),
    "empty": (lambda folder: b"", "cannot load model.onnx"),
    "cut off": (lambda folder: models.two_by_two()[:-20], "cannot load model.onnx"),
    "maps as output": (lambda folder: zipmap(), "zipmap=False"),
    "weights outside": (outside, "cannot load model.onnx.*(escapes|xternal)"),
}


@pytest.mark.parametrize("name", BROKEN_ONNX)
def test_broken_graphs_are_refused_with_the_cause(name: str, tmp_path: Path) -> None:
    make, said = BROKEN_ONNX[name]
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(make(folder))
    with pytest.raises(LoadFailed, match=said):
        check(folder, models.version("onnx", "model.onnx"))


def python_model(folder: Path, body: str, head: str = "", member: str = "calls = 0") -> Version:
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    signature = '{"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}'
    (folder / "model.py").write_text(
        f"import os, time\nimport numpy as np\n{head}\nclass Model:\n    signature = {signature}\n"
        f"    deterministic = True\n    {member}\n"
        f"    def predict(self, inputs):\n        x = inputs['x']\n{lines}\n"
    )
    return models.version("python", "model.py:Model")


BROKEN_PYTHON = {
    "raises on import": (
        "return {'y': x}",
        "raise ImportError('no torch')",
        "on import, raised ImportError: no torch",
    ),
    "raises": ("raise ValueError('odd')", "", "predict raised ValueError: odd"),
    "no dict": ("return x", "", "returned ndarray"),
    "missing output": ("return {'z': x}", "", "output 'y' is missing"),
    "wrong dtype": ("return {'y': x.astype('f8')}", "", "float64.*FP32"),
    "wrong rows": ("return {'y': x[:0]}", "", r"\[0, 2\].*\[1, 2\]"),
    "wrong width": ("return {'y': x[:, :1]}", "", "output 'y'"),
    "not deterministic": ("self.calls += 1\nreturn {'y': x + self.calls}", "", "declared deterministic"),
    "crashes": ("os._exit(7)", "", "left with exit code 7"),
    "is killed": ("os.kill(os.getpid(), 11)", "", "killed by SIGSEGV"),
    "hangs": ("while True: time.sleep(1)", "", "within 3 s"),
    "hangs on import": ("return {'y': x}", "while True: time.sleep(1)", "within 3 s"),
    "allocates": ("kept = []\nwhile True: kept.append(np.ones(10_000_000))", "", "memory"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n.startswith(("hangs", "allocates")) else [])
        for n in BROKEN_PYTHON
    ],
)
def test_broken_python_gives_a_clear_error_and_no_dead_process(name: str, tmp_path: Path) -> None:
    body, head, said = BROKEN_PYTHON[name]
    version = python_model(tmp_path, body, head)
    with pytest.raises((CheckFailed, LoadFailed), match=f"(?s){said}"):
        run_check(tmp_path, version, time_s=3.0 if "hangs" in name else 30.0, memory_bytes=600 * 1024**2)


def test_the_checking_process_gives_the_report_back(tmp_path: Path) -> None:
    version = models.MODELS["strings"](tmp_path)
    reference = {"*": np.array([["a", "ö"], ["b", "c"]], object)}
    report = run_check(tmp_path, version, reference)
    assert not report.generated and report.signature.inputs[0].datatype == "BYTES"
    with pytest.raises(CheckFailed, match="do not fit"):
        run_check(tmp_path, version, {"*": np.array(["a"], object)})
    with pytest.raises(CheckFailed, match=r"inputs \['x'\], the reference data \['z'\]"):
        run_check(tmp_path, version, {"z": reference["*"]})


def test_python_without_a_signature_learns_it_from_data(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n    def predict(self, inputs):\n        return {'y': inputs['input'].sum(axis=1)}\n"
    )
    version = models.version("python", "model.py:Model")
    with pytest.raises(LoadFailed, match="no `signature`"):
        check(tmp_path, version)
    report = check(tmp_path, version, {"*": np.ones((5, 3), np.float32)})
    assert report.signature == Signature(
        (TensorSpec("input", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1,)),), 0
    )


@pytest.mark.parametrize("entry", ["model.py", "model.py:Nobody", "other.py:Model", "../model.py:Model"])
def test_a_wrong_python_entry_is_refused(tmp_path: Path, entry: str) -> None:
    (tmp_path / "model.py").write_text("class Model:\n    pass\n")
    with pytest.raises(InterlockError, match="entry|no class"):
        check(tmp_path, models.version("python", entry))


def counted(folder: Path, limit: object, body: str = "return {'y': x}") -> Version:
    """A model that declares `max_batch_rows` and leaves the sizes of its calls in a file."""
    return python_model(
        folder,
        f"with open({str(folder / 'calls')!r}, 'a') as calls: print(len(x), file=calls)\n{body}",
        f"LIMIT = {limit!r}",
        "max_batch_rows = LIMIT",
    )


def calls(folder: Path) -> set[int]:
    return set(map(int, (folder / "calls").read_text().split()))


RAISES_ABOVE = "if len(x) > LIMIT: raise ValueError(f'{len(x)} rows')\nreturn {'y': x}"


@pytest.mark.parametrize(
    ("limit", "measured"),
    [(1, {1}), (8, {1, 8}), (20, {1, 8, 20}), (128, {1, 8, 32, 128}), (10_000, {1, 8, 32, 128})],
)
def test_a_declared_limit_of_rows_is_reached_and_never_exceeded(
    limit: int, measured: set[int], tmp_path: Path
) -> None:
    reference = {"x": np.arange(30, dtype=np.float32).reshape(15, 2)}
    report = check(tmp_path, counted(tmp_path, limit, RAISES_ABOVE), reference)
    assert report.failures == ()
    assert report.capabilities.max_batch_rows == limit
    assert set(report.profile.batch_s) == measured and max(calls(tmp_path)) == limit


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if len(x) > 999: raise ValueError('odd')", "predict raised ValueError: odd"),
        ("if len(x) > 999: x = x[:999]", r"predict raised OutputMismatch: output 'y'.*\[1000, 2\]"),
        ("if len(x) > 999: np.ones(1 << 40)", "asked for more memory than a check may have"),
        ("if len(x) > 999: os._exit(7)", "left with exit code 7"),
        pytest.param("while len(x) > 999: time.sleep(1)", "within 5 s", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_cannot_take_what_it_declares_is_told_so(body: str, said: str, tmp_path: Path) -> None:
    version = counted(tmp_path, 1000, f"{body}\nreturn {{'y': x}}")
    remedy = "called with 1000 rows, and declares max_batch_rows = 1000: declare no more than it can take"
    with pytest.raises(CheckFailed, match=f"(?s){said}.*{remedy}"):
        run_check(tmp_path, version, time_s=5.0 if "while" in body else 30.0, memory_bytes=600 * 1024**2)


def test_the_call_at_a_declared_limit_is_bounded_in_bytes(tmp_path: Path) -> None:
    version = counted(tmp_path, 10**9)
    report = check(tmp_path, version)
    assert report.failures == () and max(calls(tmp_path)) == check_limit.LIMIT_CALL_BYTES // 8
    (said,) = (result.detail for result in report.results if result.name == "max_batch_rows")
    assert said.startswith("8388608 rows (more would be above 64 MiB of inputs): y [8388608, 2]")


def test_rows_of_texts_count_with_their_lengths() -> None:
    texts = np.array([b"a" * 92, b""], object)
    assert check_limit.rows_within({"x": texts}, 5400) == 100
    assert check_limit.rows_within({"x": np.zeros((4, 0))}, 800) == 100
    assert check_limit.rows_within({"x": np.zeros((2, 1000))}, 800) == 1


def test_a_signature_is_looked_for_within_the_declared_limit(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n    max_batch_rows = 8\n    def predict(self, inputs):\n"
        "        assert len(inputs['x']) <= 8\n        return {'y': inputs['x'] * 2}\n"
    )
    report = check(tmp_path, models.version("python", "model.py:Model"), {"x": np.ones((20, 2))})
    assert report.failures == () and report.signature.batch_axis == 0


@pytest.mark.parametrize("limit", [0, -1, "8", 8.0, True, None])
def test_a_limit_that_is_no_number_of_rows_is_refused(limit: object, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=f"max_batch_rows = {limit!r}: want a whole number, 1 or more"):
        check(tmp_path, counted(tmp_path, limit))
