"""Model and Version: what is served, immutable by content digest, and what it can and may do."""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from interlock.core.errors import ConfigError
from interlock.core.fault import Fault, is_selftest

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
"""Name to array; the first axis is rows wherever the signature has a batch axis."""

Inputs = Mapping[str, Array | list[Any]]
"""What a request carries: arrays, or, where it has one row of an input [-1, n], the n numbers as a list: a
batch makes one array of them in a third of the time that one for each takes."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    # NumPy has no bfloat16. Its values are exact in float32, so that is how a model sees them;
    # codecs convert at the wire.
    "BF16": np.dtype(np.float32),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The datatypes of the Open Inference Protocol, and the dtype in which a runtime gets them."""

_BY_DTYPE = {dtype: name for name, dtype in DATATYPES.items() if name != "BF16"}


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; strings of any kind are BYTES.

    Raises: ConfigError for a dtype that the protocol cannot carry (complex, datetime).
    >>> datatype_of(np.zeros(2, np.float32))
    'FP32'
    """
    if array.dtype.kind in "SUO":
        return "BYTES"
    try:
        return _BY_DTYPE[array.dtype]
    except KeyError:
        raise ConfigError(f"dtype {array.dtype} has no counterpart in the inference protocol") from None


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output: `shape` has -1 where any length is allowed, rows included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True):
    """What goes in and what comes out. `batch_axis` is 0, or None when rows cannot be joined.

    `columns`: of a tabular model the names of its columns, in order. They are its one input's second axis, or
    each is an input [-1, 1] of its own (`table.py`).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_axis: int | None = 0
    columns: tuple[str, ...] = ()


def with_true_batch_axis(signature: Signature) -> Signature:
    """The signature with a batch axis only where rows can be joined: every input and every output has -1, any
    length, as its first axis.

    >>> x, table = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("table", "FP32", (4, 2))
    >>> with_true_batch_axis(Signature((x, table), (x,))).batch_axis is None
    True
    """
    specs = (*signature.inputs, *signature.outputs)
    if signature.batch_axis is None or all(spec.shape and spec.shape[0] == -1 for spec in specs):
        return signature
    return msgspec.structs.replace(signature, batch_axis=None)


class Capabilities(msgspec.Struct, frozen=True):
    """What a lane may do with a version.

    `tolerance` is the largest |difference| between a batch of n and n batches of one.
    """

    batchable: bool = True
    deterministic: bool = True
    side_effect_free: bool = True
    thread_safe: bool = False
    streaming: bool = False
    max_batch_rows: int = 256
    tolerance: float = 1e-5


class Placement(StrEnum):
    """Where predict runs: in the worker's loop, in a thread of the worker, or in a process of its own."""

    INLINE = "inline"
    THREAD = "thread"
    EXECUTOR = "executor"


class Profile(msgspec.Struct, frozen=True):
    """Measured at registration: `batch_s` maps rows to seconds a call; `resident_bytes` is after the load.

    `batch_bytes` maps rows to the most memory that the model held while such a batch ran, the loaded model
    included; empty where the system does not tell.
    """

    batch_s: dict[int, float] = {}
    load_s: float = 0.0
    resident_bytes: int = 0
    artifact_bytes: int = 0
    batch_bytes: dict[int, int] = {}


class Version(msgspec.Struct, frozen=True):
    """One immutable version of a model.

    `number` is the registry's version as a string; `digest` is "sha256:<hex>" over the artifact folder;
    `runtime` names a file of `runtime/`; `entry` is the file in the artifact that it loads ("" = the folder);
    `options` are the runtime's own (JSON values), e.g. skops' trusted types or a class name. `fault`: what a
    self-test's copy does wrong on purpose (`fault.py`); no other version has one.
    """

    model: str
    number: str
    digest: str
    runtime: str
    entry: str
    signature: Signature
    capabilities: Capabilities = Capabilities()
    placement: Placement = Placement.INLINE
    profile: Profile = Profile()
    memory_limit_bytes: int | None = None
    options: dict[str, Any] = {}
    fault: Fault | None = None

    @property
    def key(self) -> str:
        """Unique on a node: the same number registered anew after a deletion has another digest."""
        return f"{self.model}/{self.number}@{self.digest[7:19]}"


def check_fault(version: Version) -> None:
    """Nothing, if the version may have the fault that it has.

    Raises: ConfigError for a fault in a version of a model that is no self-test's.
    """
    if version.fault is not None and not is_selftest(version.model):
        raise ConfigError(
            f"version {version.number} of {version.model!r} has a fault on purpose ({version.fault.title}), "
            "which only a self-test's own model may have: it is refused"
        )


class ModelSettings(msgspec.Struct, frozen=True):
    """How a model's requests are treated, whatever the version. Times in seconds, sizes in rows."""

    default_timeout_s: float = 10.0
    max_timeout_s: float = 300.0
    queue_rows: int = 8192
    max_batch_rows: int | None = None
    max_wait_s: float = 0.0
    priority: int = 1


class Model(msgspec.Struct, frozen=True):
    """A name under which versions are served."""

    name: str
    settings: ModelSettings = ModelSettings()


# Lone surrogates are what Python makes of bytes on a command line that are no UTF-8: nothing can write them.
_NAME = re.compile(r"[^\x00-\x1f/:\\?#%\x7f\ud800-\udfff]{1,128}")


def check_name(name: str) -> str:
    """The name itself, if it can stand in URLs, file names and labels: 1-128 characters, none of
    / : \\ ? # %, control characters, or what UTF-8 cannot write.

    Raises: ConfigError with the offending name.
    >>> check_name("iris")
    'iris'
    """
    if not _NAME.fullmatch(name) or name in (".", "..") or name != name.strip():
        raise ConfigError(
            f"model name {name!r}: want 1-128 characters without / : \\ ? # % or control characters"
        )
    return name


LABEL_BYTES = 256
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def label_fault(name: object) -> str:
    """Why an input, an output, a column or a file cannot be called so; "" if it can.

    >>> label_fault("räksmörgås"), label_fault("")
    ('', 'is empty')
    """
    if not isinstance(name, str):
        return f"is a {type(name).__name__} and no text"
    if not name:
        return "is empty"
    if odd := _UNWRITABLE.search(name):
        return f"has the character {odd[0]!a}, which breaks lines or cannot be written as UTF-8"
    size = len(name.encode())
    return f"has {size} bytes, the limit is {LABEL_BYTES}" if size > LABEL_BYTES else ""


def artifact_path(home: Path, digest: str) -> Path:
    """Where the content-addressed cache of a home folder keeps an artifact: a folder named by its digest."""
    return home / "artifacts" / digest.removeprefix("sha256:")


def digest_of(folder: Path) -> str:
    """The content digest of an artifact folder: over the sorted relative paths and the bytes of each file.

    Symbolic links are refused: they could point outside of what was hashed.
    Raises: ConfigError for a link; OSError if a file cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ConfigError(f"artifact {folder.name}: {path.relative_to(folder)} is a symbolic link")
        if path.is_file():
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()}\0{inner}\n".encode())
    return f"sha256:{total.hexdigest()}"
