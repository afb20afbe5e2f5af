"""Decides what a PyTorch file is, and whether loading it could run code that it brings. Imports no PyTorch.

Four kinds. `program` (torch.export.save) and `script` (torch.jit.save) are zip archives of text and weights;
`weights` and `pickle` are torch.save's. A program is not data by itself: torch.export.load evaluates the text
of shapes, resolves operators by name, writes Python from the names in the graph, and unpickles what the file
says is a pickle (PyTorch 2.13, `_export/serde/serialize.py`, `export/pt2_archive/_package.py`). So it is read
here first, and refused unless all of that is plain.
"""

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interlock.core.errors import LoadFailed, UntrustedArtifact
from interlock.runtime.pickles import sha256_of

PROGRAM, SCRIPT, WEIGHTS, PICKLE = "program", "script", "weights", "pickle"
SUFFIXES = (".pt2", ".pt", ".pth")

_PLAIN = re.compile(  # the classes that tensors, and dicts of them, are unpickled with
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (\w*Storage|Size|device|bool|bfloat16|(u?int|float|complex)\d+)"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed)\.(?!from_file|save\b|load\b)\w+(\.\w+)?"
    r"|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_SYMBOL = re.compile(
    r"Symbol\('\w+'(, (positive|integer|nonnegative)=(True|False))*\)|Float\('[\d.e+\-]+', precision=\d+\)"
)
_SHAPE = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*")  # sums of symbols and numbers; no quotes, so no text
_SHAPE_WORDS = re.compile(
    r"[suz]\w{0,3}\d+|\d\w*|int_oo|oo|inf|True|False|Max|Min|Mod|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|Abs|floor|ceiling"
    r"|Add|Mul|Pow|Integer|Rational|Half|One|Zero|NegativeOne|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing|Where|PowByNatural|FloatPow|FloatTrueDiv"
    r"|IntTrueDiv|ToFloat|TruncToInt|TruncToFloat|FloorToInt|CeilToInt|RoundToInt|RoundDecimal|LShift|RShift"
)
_TREE = re.compile(r'(?:[\w .,:\[\]{}"\-]|\\+")*')  # JSON in JSON; no calls, no assignments, no line ends
_NAME = re.compile(r"[\w.\[\]:\-]*")
_SCRIPT_FILES = re.compile(r"\b(?:torch|ops\.\w+)\.(?:save|load|from_file|open_registration)\b")


def kind_of(path: Path) -> str:
    """PROGRAM, SCRIPT, WEIGHTS or PICKLE, by what is in the file.

    Raises: LoadFailed for a file that is cut off or is none of PyTorch's.
    """
    if not path.is_file():
        raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            head = file.read(2)
        if head[:1] == b"\x80":  # a pickle's first byte: torch.save before 1.6, or any other pickle
            return PICKLE
        raise LoadFailed(
            f"{path.name} is no PyTorch file, or it is cut off: it is neither a zip nor a pickle"
        )
    with zipfile.ZipFile(path) as archive:
        inner = [name.partition("/")[2] or name for name in archive.namelist()]
        if any(re.fullmatch(r"models/[^/]+\.json", name) for name in inner):
            return PROGRAM
        if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
            return SCRIPT
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                return WEIGHTS if not _foreign(archive.read(name)) else PICKLE
    raise LoadFailed(
        f"{path.name} is a zip file without a torch.export program, TorchScript or a pickle in it: want what "
        "torch.export.save or torch.jit.save writes (those of PyTorch before 2.8 must be saved again)"
    )


def checked_kind(path: Path, options: dict[str, Any]) -> str:
    """The kind of a file that may be loaded: it brings no code, or somebody vouched for its SHA-256.

    Raises: UntrustedArtifact with what was found and the remedy; LoadFailed.
    """
    kind = kind_of(path)
    if options.get("trusted_sha256") and options["trusted_sha256"] == sha256_of(path):
        return kind
    if kind == PICKLE:
        raise UntrustedArtifact(
            f"{path.name} is a pickle of a whole module: loading it runs code that it brings, and nobody "
            f"vouched for SHA-256 {sha256_of(path)}. Save torch.export's program instead, or register it "
            "with --trust if you know where it comes from"
        )
    if kind == WEIGHTS:
        raise LoadFailed(
            f"{path.name} holds weights only, no model: register the nn.Module itself from Python, "
            "interlock.register(name, module, X), or save torch.export's program (torch.export.save)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            found = next(_code_in_program(archive) if kind == PROGRAM else _files_in_script(archive), "")
    except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError) as error:
        raise LoadFailed(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
    if found:
        raise UntrustedArtifact(
            f"{path.name} {found}: loading it could run code that it brings, and nobody vouched for SHA-256 "
            f"{sha256_of(path)}; register it with --trust if you know where it comes from"
        )
    return kind


def _code_in_program(archive: zipfile.ZipFile) -> Iterator[str]:
    if len(set(archive.namelist())) != len(archive.namelist()):
        yield "has two files of one name"  # PyTorch might read the other one
    for name in archive.namelist():
        inner = name.partition("/")[2]
        if inner.startswith(("data/weights/", "data/constants/")) and inner.endswith(".json"):
            for entry in json.loads(archive.read(name))["config"].values():
                if entry["use_pickle"] is not False or "obj_" in entry["path_name"]:
                    yield f"has a pickle for a tensor ({entry['path_name']})"
        elif inner.startswith("data/") and inner.endswith(".pt"):
            for word in sorted(_foreign_in_saved(archive.read(name))):
                yield f"has a pickle of {word} in {inner}"
        elif inner.startswith("models/") and inner.endswith(".json"):
            yield from _code_in_graph(json.loads(archive.read(name)), "")
        elif inner.startswith("data/aotinductor/"):
            yield f"has compiled code ({inner})"


def _code_in_graph(value: Any, key: str) -> Iterator[str]:
    """What in the JSON of a graph is more than names, numbers and known operators."""
    if isinstance(value, dict):
        for inner, item in value.items():
            # Stack traces and the like are read as text; texts that operators take are written quoted.
            if inner not in ("metadata", "as_string", "guards_code", "torch_version"):
                if not _NAME.fullmatch(inner):
                    yield f"has a name that is none ({inner[:80]!r})"
                yield from _code_in_graph(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _code_in_graph(item, key)
    elif isinstance(value, str) and value:
        if key == "target":
            if not _TARGET.fullmatch(value):
                yield f"calls {value[:80]!r}"
        elif key == "expr_str":
            formula = _SYMBOL.sub("0", value)
            words = re.findall(r"[A-Za-z_]\w*", formula)
            if not (_SHAPE.fullmatch(formula) and all(map(_SHAPE_WORDS.fullmatch, words))):
                yield f"has a shape that is more than a sum of symbols ({value[:80]!r})"
        elif key in ("in_spec", "out_spec", "treespec_namedtuple_fields"):
            if not _TREE.fullmatch(value):
                yield f"has inputs or outputs with names that are none ({value[:80]!r})"
        elif not _NAME.fullmatch(value):
            yield f"has a name that is none ({value[:80]!r})"


def _files_in_script(archive: zipfile.ZipFile) -> Iterator[str]:
    """TorchScript is compiled and unpickled by PyTorch's own C++, which knows no Python class: what is left
    are its operators that read and write files."""
    for name in archive.namelist():
        if "/code/" in name and name.endswith(".py"):
            found = _SCRIPT_FILES.search(archive.read(name).decode(errors="replace"))
            if found:
                yield f"reads or writes files ({found[0]})"


def _foreign_in_saved(data: bytes) -> set[str]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return {"an old format"} if data else set()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        return set().union(*(_foreign(archive.read(name)) for name in pickles))


def _foreign(data: bytes) -> set[str]:
    """What a pickle calls beyond what tensors need; read, never run."""
    found: set[str] = set()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                if not _PLAIN.fullmatch(str(argument)):
                    found.add(str(argument).replace(" ", "."))
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                found.add("classes named at run time")
    except Exception as error:  # pickletools raises what its readers raise
        raise LoadFailed(f"a pickle in it cannot be read: {type(error).__name__}: {error}") from error
    return found
