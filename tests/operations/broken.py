"""Owns the broken models: how each is made, and what its registration must say. test_broken_models.py
registers them."""

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from interlock.core.errors import (
    CheckFailed,
    InterlockError,
    LoadFailed,
    UnknownFormat,
    UntrustedArtifact,
)
from interlock.operations import reference

ROWS = np.arange(150, dtype=np.float64).reshape(50, 3)
X = pd.DataFrame(ROWS, columns=["a", "b", "c"])
FITTED = LinearRegression().fit(ROWS, ROWS[:, 0])
SIGNATURE = 'signature = {"inputs": {"x": ("FP64", [-1, 3])}, "outputs": {"y": ("FP64", [-1])}}'


@dataclass(frozen=True)
class Case:
    """`make` gets an empty folder, and returns what is registered. All of `words` must be said; the first are
    said of no other case."""

    make: Callable[[Path], Any]
    kind: type[InterlockError]
    words: tuple[str, ...]
    data: Any = None
    options: dict[str, Any] = field(default_factory=dict)


def write(name: str, data: bytes | str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return folder / name

    return made


def python(body: str, *, head: str = "", signature: bool = True) -> Callable[[Path], Path]:
    """A class whose `predict` has that body; `head` are further lines of the class."""
    lines = ["import ctypes, os, subprocess, sys, time", "import numpy as np", "class A:"]
    lines += [f"    {line}" for line in (*([SIGNATURE] if signature else []), *head.splitlines())]
    lines += ["    def predict(self, i):", *(f"        {line}" for line in body.splitlines())]
    return write("model.py", "\n".join(lines) + "\n")


def on_load(code: str) -> Callable[[Path], Path]:
    return python(SUM, head=f"def load(self, folder):\n    {code}")


SUM = "return {'y': i['x'].sum(axis=1)}"
GIVEN = {"x": ROWS}


def graph(nodes: list[Any], outputs: list[Any], opset: int = 18, domain: str = "") -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_model(helper.make_graph(nodes, "g", [x], outputs), opset_imports=opsets, ir_version=9)
    return bytes(made.SerializeToString())


Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
IDENTITY = graph([helper.make_node("Identity", ["x"], ["y"])], [Y])


def outside(folder: Path) -> Path:
    """A graph whose weights lie in a file outside of its folder."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "../weights.bin"), ("length", "12")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, text
    (folder / "weights.bin").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    body = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [Y], [weights])
    made = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model").mkdir()
    (folder / "model" / "graph.onnx").write_bytes(made.SerializeToString())
    return folder / "model"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.skops")
    return folder / "pipe.skops"


def empty_folder(folder: Path) -> Path:
    (folder / "dir.onnx").mkdir()
    return folder / "dir.onnx"


def link(name: str, target: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return made


def in_folder(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A folder with a good model, and what `make` puts beside it."""

    def made(folder: Path) -> Path:
        inner = folder / "model"
        inner.mkdir()
        (inner / "graph.onnx").write_bytes(IDENTITY)
        make(inner)
        return inner

    return made


def half(write_model: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = write_model(folder)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return made


def skops(folder: Path) -> Path:
    import skops.io

    skops.io.dump(FITTED, folder / "cut.skops")
    return folder / "cut.skops"


def bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bomb.skops", "w", zipfile.ZIP_DEFLATED) as stored:
        with stored.open("schema.json", "w") as file:
            for _ in range(80):
                file.write(b" " * 1024**2)
    return folder / "bomb.skops"


def sparse(name: str, size: int) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            file.truncate(size)
        return folder / name

    return made


def fitted(_folder: Path) -> Any:
    return FITTED


def mixed(columns: int) -> pd.DataFrame:
    return pd.DataFrame({f"c{index}": ["x", "y"] * 3 for index in range(columns)})


TRUST = {"trust": True}
WITHOUT_END = "while True: pass"

CASES: dict[str, Case] = {
    # What it is
    "an object": Case(lambda _: object(), UnknownFormat, ("object of type object", "want .onnx")),
    "no such file": Case(lambda f: f / "absent.onnx", UnknownFormat, ("absent.onnx' does not exist", "want")),
    "a suffix": Case(write("notes.txt", "x"), UnknownFormat, ("no runtime reads .txt", "want .onnx")),
    "an empty file": Case(write("none.onnx", ""), LoadFailed, ("none.onnx is empty (0 bytes)", "write it")),
    "a folder with a suffix": Case(
        empty_folder,
        UnknownFormat,
        ("folder dir.onnx has 0 .onnx files", "want exactly one"),
    ),
    "a link to itself": Case(
        link("loop.onnx", "loop.onnx"), LoadFailed, ("'loop.onnx', which leads nowhere", "symbolic link")
    ),
    "a pipe": Case(fifo, LoadFailed, ("pipe.skops is a pipe (FIFO)", "want an ordinary file"), None, TRUST),
    "a device": Case(link("zero.onnx", "/dev/zero"), LoadFailed, ("zero.onnx is a device", "ordinary file")),
    "a device in a folder": Case(
        in_folder(link("weights.bin", "/dev/zero")),
        UnknownFormat,
        ("weights.bin is a symbolic link", "put the file itself"),
    ),
    "a pipe in a folder": Case(
        in_folder(fifo), UnknownFormat, ("folder model: pipe.skops is a pipe", "leave it out")
    ),
    "a file name with a line break": Case(
        write("a\nb.onnx", IDENTITY), LoadFailed, ("'a\\nb.onnx'", "character '\\n'", "rename it")
    ),
    "a huge source": Case(
        sparse("huge.py", 2**30), LoadFailed, ("1,073,741,824 bytes, the limit is 16,777,216",)
    ),
    # ONNX
    "half of an ONNX file": Case(half(write("half.onnx", IDENTITY)), LoadFailed, ("half.onnx", "export")),
    "a folder's weights outside": Case(outside, LoadFailed, ("graph.onnx", "weights", "register the folder")),
    "an operator of its own": Case(
        write("own.onnx", graph([helper.make_node("Spin", ["x"], ["y"], domain="me")], [Y], domain="me")),
        LoadFailed,
        ("own.onnx", "Spin", "operator that this runtime has not"),
    ),
    "an opset of the future": Case(
        write("new.onnx", graph([helper.make_node("Identity", ["x"], ["y"])], [Y], opset=99)),
        LoadFailed,
        ("new.onnx", "opset", "older opset"),
    ),
    "no output": Case(
        write("mute.onnx", graph([helper.make_node("Identity", ["x"], ["y"])], [])),
        LoadFailed,
        ("1 inputs and 0 outputs", "at least one of each"),
    ),
    # Python
    "a syntax error": Case(write("bad.py", "class ("), LoadFailed, ("bad.py is not Python", "mend it")),
    "no class": Case(write("void.py", "x = 1"), UnknownFormat, ("void.py has 0 classes", "name one")),
    "a class that is not there": Case(
        lambda f: f"{python(SUM)(f)}:Other", LoadFailed, ("no class 'Other'", "predict(inputs)")
    ),
    "two classes": Case(
        write("two.py", "".join(f"class {n}:\n    def predict(self, i): pass\n" for n in "AB")),
        UnknownFormat,
        ("two.py has 2 classes", "name one"),
    ),
    "a package that is missing": Case(
        write("needs.py", "import absent_package\nclass A:\n    def predict(self, i): pass\n"),
        LoadFailed,
        ("install 'absent_package' for the node",),
    ),
    "another width": Case(
        python("return {'y': i['input'] @ np.ones((4, 1))}", signature=False),
        LoadFailed,
        ("matmul", "declare a `signature`"),
        X,
    ),
    "another width than it declares": Case(
        python(SUM), CheckFailed, ("input 'x': got [50, 2], the model wants [-1, 3]",), {"x": ROWS[:, :2]}
    ),
    "random and declared not to be": Case(
        python("return {'y': np.random.rand(len(i['x']))}", head="deterministic = True"),
        CheckFailed,
        ("declared deterministic, and two equal calls differ", "seed it"),
        GIVEN,
    ),
    "it leaves at row 7": Case(
        python(f"if (i['x'][:, 0] == 21).any(): os._exit(3)\n{SUM}"),
        CheckFailed,
        ("exit code 3", "in the check 'many rows'"),
        GIVEN,
    ),
    "it leaves when loaded": Case(
        on_load("os._exit(6)"), CheckFailed, ("exit code 6", "while it was loaded"), GIVEN
    ),
    "it breaks the memory at row 7": Case(
        python(f"if (i['x'][:, 0] == 21).any(): ctypes.string_at(0)\n{SUM}"),
        CheckFailed,
        ("SIGSEGV", "in the check 'many rows'"),
        GIVEN,
    ),
    "it leaves by sys.exit": Case(
        python("sys.exit(4)"), CheckFailed, ("sys.exit, code 4", "raise an exception instead"), GIVEN
    ),
    "NaN alone": Case(
        python("return {'y': i['x'].sum(axis=1) * np.nan}"),
        CheckFailed,
        ("'y' is NaN in 128 of 128 answers", "leave that output out"),
        GIVEN,
    ),
    "fewer answers than rows": Case(
        python("return {'y': i['x'][:1, 0]}"), CheckFailed, ("float64 [1]", "wants FP64 [128]"), GIVEN
    ),
    "a list as answer": Case(
        python("return [1.0]"), CheckFailed, ("predict returned list, want a dict",), GIVEN
    ),
    "a ragged answer": Case(
        python("return {'y': [[1.0], [1.0, 2.0]]}"), CheckFailed, ("output 'y' is no array",), GIVEN
    ),
    "complex numbers": Case(
        python("return {'y': i['input'][:, 0] * 1j}", signature=False),
        LoadFailed,
        ("'y': dtype complex128", "want numbers, booleans or texts"),
        X,
    ),
    "objects": Case(
        python("return {'y': np.array([{}] * len(i['input']))}", signature=False),
        CheckFailed,
        ("output 'y' holds a dict", "want numbers, booleans or texts"),
        X,
    ),
    "an output without a name": Case(
        python("return {'': i['input']}", signature=False), CheckFailed, ("output '' is empty", "rename"), X
    ),
    "an output of a long name": Case(
        python("return {'y' * 300: i['input']}", signature=False),
        CheckFailed,
        ("has 300 bytes, the limit is 256",),
        X,
    ),
    "an output that is called 1": Case(
        python("return {1: i['input']}", signature=False), CheckFailed, ("output '1' is a int",), X
    ),
    "an input twice": Case(
        python(
            SUM,
            head="from interlock.core.model import Signature, TensorSpec\n"
            "x, y = TensorSpec('x', 'FP64', (-1, 3)), TensorSpec('y', 'FP64', (-1,))\n"
            "signature = Signature((x, x), (y,))",
        ),
        CheckFailed,
        ("input 'x' is there twice", "rename one"),
        GIVEN,
    ),
    "words that cannot be had": Case(
        python(
            "raise E()",
            head="class E(Exception):\n    def __str__(self): raise ValueError\nglobals()['E'] = E",
        ),
        CheckFailed,
        ("str() of it raised ValueError",),
        GIVEN,
    ),
    "without end when loaded": Case(
        on_load(WITHOUT_END),
        CheckFailed,
        ("within 1.5 s", "make loading", "while it was loaded"),
        GIVEN,
        {"time_s": 1.5},
    ),
    "without end when asked": Case(
        python(WITHOUT_END),
        CheckFailed,
        ("within 1.4 s", "make loading", "in the check 'one row'"),
        GIVEN,
        {"time_s": 1.4},
    ),
    "too much memory": Case(
        on_load("self.all = np.ones(2**28)"),
        CheckFailed,
        ("more than 512 MiB of memory",),
        GIVEN,
        {"memory_bytes": 2**29},
    ),
    "children that stay": Case(
        on_load("subprocess.Popen(['sleep', '300'], start_new_session=True); os._exit(5)"),
        CheckFailed,
        ("exit code 5", "ended it"),
        GIVEN,
    ),
    "it writes into its folder": Case(
        on_load("(folder / 'cache.bin').write_text('x')"),
        CheckFailed,
        ("changed ['cache.bin'] in its own folder", "tempfile"),
        GIVEN,
    ),
    "whole numbers that no float holds": Case(
        python("return {'y': i['input']}", signature=False),
        CheckFailed,
        ("column 'id' has 9007199254740993 in row 1", "leave that column out"),
        pd.DataFrame({"id": [1, 2**53 + 1], "b": [1.0, 2.0]}),
    ),
    # Scikit-learn
    "a pickle without trust": Case(
        write("model.pkl", pickle.dumps(FITTED)), UntrustedArtifact, ("model.pkl is a pickle", "--trust")
    ),
    "half of a pickle": Case(
        half(write("cut.pkl", pickle.dumps(FITTED))), LoadFailed, ("cut.pkl", "may not be whole"), X, TRUST
    ),
    "half of a skops file": Case(half(skops), LoadFailed, ("cut.skops", "or not whole", "save the model")),
    "a zip bomb": Case(bomb, LoadFailed, ("83,886,080 bytes, the limit is 67,108,864",), None, TRUST),
    "not fitted": Case(
        lambda _: LinearRegression(), LoadFailed, ("cannot predict from floats", "not fitted yet"), X
    ),
    "fitted on other columns": Case(
        lambda _: LinearRegression().fit(X, ROWS[:, 0]),
        CheckFailed,
        ("no ['c']", "fitted on the columns"),
        X[["a", "b"]],
    ),
    "1,025 mixed columns": Case(
        fitted, LoadFailed, ("1025 columns", "limit is 1024", "encode them"), mixed(1025)
    ),
}

DATA: dict[str, tuple[Callable[[Path], Any], str | None, tuple[str, ...]]] = {
    "no row": (lambda _: X.head(0), None, ("{'a': 0, 'b': 0, 'c': 0} rows", "at least 1")),
    "a column twice": (
        lambda _: pd.DataFrame(ROWS, columns=["a", "b", "a"]),
        None,
        ("['a'] are there more than once", "rename or drop"),
    ),
    "dates": (
        lambda _: pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}),
        None,
        ("'when' is datetime64", "derive such columns"),
    ),
    "lists": (lambda _: pd.DataFrame({"tags": [[1], [2]]}), None, ("'tags' is object", "leave it out")),
    "a ragged list": (lambda _: [[1.0], [1.0, 2.0]], None, ("the matrix is no array",)),
    "complex": (lambda _: {"x": ROWS * 1j}, None, ("input 'x' is complex128", "want numbers")),
    "a line break": (lambda _: X.rename(columns={"a": "a\nb"}), None, ("'a\\nb'", "rename it")),
    "a lone surrogate": (lambda _: X.rename(columns={"a": "\udc80"}), None, ("'\\udc80'", "rename it")),
    "a long name": (lambda _: X.rename(columns={"a": "a" * 300}), None, ("300 bytes, the limit is 256",)),
    "no such target": (
        write("d.csv", "a,b\n1,2\n"),
        "kind",
        ("no column 'kind'", "want one of ['a', 'b']"),
    ),
    "gaps in the target": (
        write("d.csv", "a,b\n1,2\n3,\n"),
        "b",
        ("no value in 1 of 2 rows", "leave these rows out"),
    ),
    "the target alone": (write("d.csv", "b\n1\n2\n"), "b", ("without a column", "beside the target")),
    "another suffix": (write("d.xls", "x"), None, ("d.xls: want .parquet, .csv or .npz",)),
    "an empty file": (write("d.parquet", ""), None, ("d.parquet is empty (0 bytes)",)),
    "no Parquet": (write("d.parquet", "PAR1 nothing"), None, ("d.parquet cannot be read",)),
    "half of an archive": (write("d.npz", b"PK\x03\x04half"), None, ("d.npz cannot be read",)),
    "a pipe": (lambda f: fifo(f).rename(f / "d.csv"), None, ("d.csv is a pipe",)),
    "a device": (link("d.csv", "/dev/zero"), None, ("d.csv is a device",)),
    "too many bytes": (sparse("d.csv", reference.MOST_BYTES + 1), None, ("limit is 2,147,483,648",)),
}
