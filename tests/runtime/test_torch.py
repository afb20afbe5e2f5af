"""Holds the runtime `torch` to real modules, and its reading of files to those that would run code."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlock.core.errors import CheckFailed, InterlockError, LoadFailed, ShapeMismatch, UntrustedArtifact
from interlock.core.model import Signature, TensorSpec
from interlock.runtime import pickles, torch_files, torch_program
from interlock.runtime.check import check
from interlock.runtime.prepare import Begin, Prepared, allowed
from interlock.runtime.torch import Torch, TorchModel, program_call
from interlock.runtime.torch_prepare import prepare
from tests.runtime import models

pytestmark = pytest.mark.slow


class Two(torch.nn.Module):  # type: ignore[misc]  # mypy does not read that package
    """A dict with a tuple inside; half precision in, and bfloat16 out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(3, 8)

    def forward(self, x: Any, y: Any, scale: Any = None) -> Any:
        h = torch.relu(self.a(x) + self.b(y))
        h = h if scale is None else h * scale
        return {"h": h, "parts": (h.sum(1), h.mean(1).bfloat16())}


class Branches(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


ROWS = {"x": np.random.default_rng(0).normal(size=(50, 4)), "y": np.ones((50, 3))}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(tmp_path_factory.mktemp("program") / "model.pt2")
    path.write_bytes(torch_program.saved(torch_program.export(models.torch_mlp(), {"*": models.X})))
    return path


def test_a_module_is_exported_with_free_rows_and_named_outputs(tmp_path: Path) -> None:
    module = Two().train()
    data = torch_program.saved(torch_program.export(module, ROWS))
    assert module.training
    (tmp_path / "model.pt2").write_bytes(data)
    report = check(tmp_path, models.version("torch", "model.pt2"))
    assert report.failures == ()
    assert report.signature == Signature(
        (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))),
        (
            TensorSpec("h", "FP32", (-1, 8)),
            TensorSpec("parts_0", "FP32", (-1,)),
            TensorSpec("parts_1", "BF16", (-1,)),
        ),
        0,
    )
    loaded = Torch().load(tmp_path, models.version("torch", "model.pt2"))
    inputs = {name: array[:5].astype(np.float32) for name, array in ROWS.items()}
    for array in inputs.values():
        array.setflags(write=False)  # as requests bring them
    with torch.inference_mode():
        wanted = module.eval()(*(torch.tensor(array) for array in inputs.values()))
    answer = loaded.predict(inputs)
    np.testing.assert_array_equal(answer["h"], wanted["h"].numpy())
    np.testing.assert_array_equal(answer["parts_1"], wanted["parts"][1].float().numpy())
    assert list(loaded.predict(inputs, ("parts_0",))) == ["parts_0"]
    with pytest.raises(ShapeMismatch, match=r"input 'y': got \[5, 4\], the signature wants \[-1, 3\]"):
        loaded.predict({**inputs, "y": inputs["x"]})


def test_what_is_exported_twice_is_the_same_artifact_without_rows_or_paths() -> None:
    module = models.torch_mlp()
    rows = np.full((3, 4), 123456.789)
    data = torch_program.saved(torch_program.export(module, {"*": rows}))
    assert data == torch_program.saved(torch_program.export(module, {"*": rows * 2}))
    assert np.float32(123456.789).tobytes() not in data and str(Path.cwd()).encode() not in data


def test_fixed_rows_are_served_as_such(tmp_path: Path) -> None:
    exported = torch.export.export(models.torch_mlp().eval(), (torch.zeros(1, 4),))
    torch.export.save(exported, tmp_path / "model.pt2")
    report = check(tmp_path, models.version("torch", "model.pt2"))
    assert report.failures == () and not report.capabilities.batchable
    assert report.signature.inputs[0].shape == (1, 4)
    (tmp_path / "out").mkdir()
    kept = prepared(tmp_path, {"*": models.X}).conversion
    assert kept is not None and "without dynamic_shapes" in kept.reason


@pytest.mark.parametrize(
    ("module", "rows", "said"),
    [
        (Branches(), {"*": models.X}, "torch.export.export yourself and register its .pt2 file"),
        (Two(), {"*": models.X}, r"forward takes \['x', 'y', 'scale'\] \(2 of them required\)"),
        (Two(), {"x": models.X, "z": models.X}, r"the reference data have \['x', 'z'\]"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_remedy(module: Any, rows: Any, said: str) -> None:
    with pytest.raises(LoadFailed, match=said):
        torch_program.export(module, rows)


def prepared(folder: Path, rows: Any, begin: Begin = allowed) -> Prepared:
    """What comes of `folder / "model.pt2"`, in `folder / "out"`."""
    version = models.version("torch", "model.pt2")
    before = torch.get_num_threads()
    try:
        return prepare(folder, version, rows, folder / "out", begin)
    finally:
        torch.set_num_threads(before)


def test_a_program_becomes_onnx_only_if_it_answers_the_same(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "model.pt2"
    path.write_bytes(torch_program.saved(torch_program.export(models.torch_mlp(), {"*": models.X})))
    kept = prepared(tmp_path, {"*": models.X}, lambda: "it was given up")
    assert kept.runtime == "torch" and kept.conversion is not None
    assert kept.conversion.reason == "kept as PyTorch: it was given up"
    assert [made.name for made in (tmp_path / "out").iterdir()] == [path.name]
    done = prepared(tmp_path, {"*": models.X})
    found = done.conversion
    assert found is not None and found.rows >= 4000, found
    assert found.difference is not None and found.difference <= 1e-5, found
    assert set(found.kept_s) == set(found.onnx_s) == {1, 32}
    assert found.converted == all(found.onnx_s[rows] < found.kept_s[rows] for rows in (1, 32))
    assert (done.runtime, done.entry) == (("onnx", "model.onnx") if found.converted else ("torch", path.name))
    with pytest.raises(CheckFailed, match="do not fit"):
        prepared(tmp_path, {"*": models.X[:, :2]})
    loud = models.torch_mlp()
    with torch.no_grad():
        loud[3].weight *= 1e6  # float32 cannot hold 1e-5 of that
    path.write_bytes(torch_program.saved(torch_program.export(loud, {"*": models.X})))
    done = prepared(tmp_path, {"*": models.X})
    assert done.runtime == "torch" and done.conversion is not None
    assert "the limit is 1e-05" in done.conversion.reason
    assert (tmp_path / "out" / "model.pt2").read_bytes() == path.read_bytes()


def test_torchscript_learns_its_shapes_from_rows(tmp_path: Path) -> None:
    module = models.torch_mlp().eval()
    torch.jit.save(torch.jit.script(module), tmp_path / "model.pt")
    version = models.version("torch", "model.pt")
    with pytest.raises(LoadFailed, match="give reference data"):
        check(tmp_path, version)
    report = check(tmp_path, version, {"*": models.X})
    assert report.failures == () and report.signature.batch_axis == 0
    loaded = TorchModel(torch.jit.load(tmp_path / "model.pt"), report.signature)
    rows = models.X.astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(
            loaded.predict({"input": rows})["output"], module(torch.tensor(rows)).numpy(), atol=1e-6
        )
    with pytest.raises(LoadFailed, match="the module raised on the reference data: RuntimeError"):
        check(tmp_path, version, {"*": models.X[:, :3]})


def test_a_pickled_module_needs_somebody_who_vouches_for_it(tmp_path: Path) -> None:
    torch.save(models.torch_mlp().eval(), tmp_path / "model.pth")
    with pytest.raises(UntrustedArtifact, match="pickle of a whole module.*--trust"):
        check(tmp_path, models.version("torch", "model.pth"), {"*": models.X})
    with pytest.raises(UntrustedArtifact):
        check(tmp_path, models.version("torch", "model.pth", trusted_sha256="0" * 64), {"*": models.X})
    digest = pickles.sha256_of(tmp_path / "model.pth")
    report = check(tmp_path, models.version("torch", "model.pth", trusted_sha256=digest), {"*": models.X})
    assert report.failures == () and report.capabilities.batchable


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    torch.save(models.torch_mlp().state_dict(), tmp_path / "model.pt")
    with pytest.raises(LoadFailed, match=r"weights only, no model.*interlock\.register\(name, module, X\)"):
        check(tmp_path, models.version("torch", "model.pt"))


class Mark:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


Change = Callable[[str, bytes, Path], bytes]


def in_graph(old: bytes, new: bytes) -> Change:
    def change(name: str, data: bytes, mark: Path) -> bytes:
        return data.replace(old, new.replace(b"MARK", str(mark).encode())) if "models/" in name else data

    return change


def in_weights(name: str, data: bytes, mark: Path) -> bytes:
    if name.endswith("weights_config.json"):
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')
    if "/weights/" in name:
        buffer = io.BytesIO()
        torch.save(Mark(mark), buffer)
        return buffer.getvalue()
    return data


def in_samples(name: str, data: bytes, mark: Path) -> bytes:
    if not name.endswith("sample_inputs/model.pt"):
        return data
    buffer = io.BytesIO()
    torch.save(({"x": Mark(mark)}, {}), buffer)
    return buffer.getvalue()


TAMPERED: dict[str, tuple[Change, str]] = {
    "a weight that is a pickle": (in_weights, "has a pickle for a tensor"),
    "example inputs that are a pickle": (in_samples, "has a pickle of .*in data/sample_inputs"),
    "a shape that is code": (
        in_graph(b"\"Symbol('s", b"\"__import__('pathlib').Path('MARK').touch() or Symbol('s"),
        "has a shape that is more than a sum of symbols",
    ),
    "an operator that loads": (in_graph(b"torch.ops.aten.relu.default", b"torch.load"), "calls 'torch.load'"),
    "an operator that reads a file": (
        in_graph(b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default"),
        "calls 'torch.ops.aten.from_file",
    ),
    "a name that is code": (
        in_graph(b'"name": "input"', b'"name": "input=open(0)"'),
        "has a name that is none",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_program_that_could_run_code_is_refused_and_runs_none(
    what: str, program: Path, tmp_path: Path
) -> None:
    change, said = TAMPERED[what]
    mark = tmp_path / "mark"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(tmp_path / "model.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name), mark))
    with pytest.raises(UntrustedArtifact, match=f"{said}.*--trust"):
        check(tmp_path, models.version("torch", "model.pt2"))
    assert not mark.exists()


def test_the_tampering_would_have_worked(program: Path, tmp_path: Path) -> None:
    """Else the test before shows nothing: PyTorch itself runs what two of those bring."""
    for what in ("a weight that is a pickle", "a shape that is code"):
        mark, path = tmp_path / what, tmp_path / "model.pt2"
        with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, TAMPERED[what][0](name, old.read(name), mark))
        try:
            torch.export.load(path)
        except Exception as error:
            assert mark.exists(), error
        assert mark.exists(), what


def test_two_files_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    shutil.copy(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive, pytest.warns(UserWarning):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(UntrustedArtifact, match="two files of one name"):
        torch_files.checked_kind(tmp_path / "model.pt2", {})


def test_torchscript_that_writes_files_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(models.torch_mlp().eval()), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("model/code/__torch__/other.py", "def f(x):\n  torch.save(x, 'out')\n")
    with pytest.raises(UntrustedArtifact, match=r"reads or writes files \(torch\.save\)"):
        torch_files.checked_kind(tmp_path / "model.pt", {})


def test_files_that_are_none_of_pytorchs(program: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-200])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "old.pt").write_bytes(pickle.dumps([1]))
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/b.json", json.dumps([]))
    found = {}
    for name in ("cut.pt2", "text.pt", "old.pt", "zip.pt", "none.pt"):
        with pytest.raises(InterlockError) as caught:
            torch_files.checked_kind(tmp_path / name, {})
        found[name] = f"{type(caught.value).__name__}: {caught.value.message}"
    assert "LoadFailed: cut.pt2 is no PyTorch file, or it is cut off" in found["cut.pt2"]
    assert "neither a zip nor a pickle" in found["text.pt"] and "UntrustedArtifact" in found["old.pt"]
    assert (
        "without a torch.export program" in found["zip.pt"] and "is not in the artifact" in found["none.pt"]
    )


def test_arguments_that_were_fixed_at_export_are_filled_in() -> None:
    rows = (torch.zeros(2, 4), torch.zeros(2, 3))
    dim = torch.export.Dim("rows", min=1)
    exported = torch.export.export(
        Two(),
        (rows[0],),
        {"y": rows[1], "scale": None},
        dynamic_shapes={"x": {0: dim}, "y": {0: dim}, "scale": None},
    )
    call, signature = program_call(exported)
    assert [spec.name for spec in signature.inputs] == ["x", "y"] and signature.batch_axis == 0
    assert call(torch.zeros(3, 4), torch.zeros(3, 3))["h"].shape == (3, 8)
