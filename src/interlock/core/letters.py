"""The two letters between the planes: Desired down, Report up; JSON, tolerant of unknown fields."""

import hashlib
import tempfile
from enum import StrEnum
from pathlib import Path

import msgspec

from interlock.core.errors import SchemaTooNew
from interlock.core.model import Model, Version
from interlock.core.route import Route

SCHEMA = 1
"""Raised when a reader of the older schema would misunderstand; adding a field does not raise it."""


class ModelDesired(msgspec.Struct, frozen=True):
    """What a node does about one model. `route` is None while its first version is being prepared.

    `versions` are all that must be loaded, those outside the route too (a candidate being prepared, an
    incumbent kept hot). `releases` maps each one's number to the newest release that asks for it: a
    quarantine holds for the release under which it was spoken, and an explicit new one gets new tries.
    """

    model: Model
    versions: tuple[Version, ...]
    route: Route | None
    releases: dict[str, int] = {}


class Desired(msgspec.Struct, frozen=True):
    """Complete for the node and idempotent: what it omits is unloaded. `revision` only grows.

    `unloaded`: models that were live once and are taken off, with the number that was live last; for those
    who ask about them.
    """

    node: str
    revision: int
    models: tuple[ModelDesired, ...] = ()
    schema: int = SCHEMA
    unloaded: dict[str, str] = {}


class VersionState(StrEnum):
    """Where a version stands in one process. READY is the only one that answers."""

    PENDING = "pending"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class VersionStatus(msgspec.Struct, frozen=True):
    """`reason` says why in FAILED and QUARANTINED; `load_s` how long the last load and warm-up took."""

    model: str
    number: str
    digest: str
    state: VersionState
    reason: str = ""
    load_s: float = 0.0

    @property
    def words(self) -> str:
        """How one that does not answer stands, for people."""
        if self.state is VersionState.READY:  # until all workers have it, no route leads to it
            return f"version {self.number} is loaded and about to go live"
        return f"version {self.number} is {self.state.value} {self.reason}".strip()


class ChildStatus(msgspec.Struct, frozen=True):
    """A process as its parent sees it. `pid` is 0 while it waits to be started again; `restarts` is how often
    that happened since its parent started."""

    process: str
    pid: int = 0
    incarnation: int = 0
    ready: bool = False
    leaving: bool = False
    resident_bytes: int = 0
    restarts: int = 0


class Report(msgspec.Struct, frozen=True):
    """What one process says of itself. `revision` is the newest Desired that it fully carries out: routes
    swapped, and nothing left to load or unload; `seen_revision` the newest that it has read.

    `process` is "worker-0", "supervisor" …; `incarnation` is new at every start. Filled by the supervisor:
    `quarantined`, version key to reason; `crashes`, how often each version ended its process lately under the
    release that asks for it; and `children`, all the processes that it keeps.
    """

    node: str
    process: str
    incarnation: int
    pid: int
    seen_revision: int
    revision: int
    ready: bool
    draining: bool = False
    versions: tuple[VersionStatus, ...] = ()
    quarantined: dict[str, str] = {}
    resident_bytes: int = 0
    schema: int = SCHEMA
    children: tuple[ChildStatus, ...] = ()
    crashes: dict[str, int] = {}


_desired = msgspec.json.Decoder(Desired)
_report = msgspec.json.Decoder(Report)


def encode(letter: Desired | Report) -> bytes:
    """One line of JSON without a line feed inside."""
    return msgspec.json.encode(letter)


def decode_desired(data: bytes) -> Desired:
    """Raises: SchemaTooNew; msgspec.ValidationError when it is not a Desired at all."""
    letter = _desired.decode(data)
    _check(letter.schema)
    return letter


def decode_report(data: bytes) -> Report:
    """Raises: SchemaTooNew; msgspec.ValidationError when it is not a Report at all."""
    letter = _report.decode(data)
    _check(letter.schema)
    return letter


def _check(schema: int) -> None:
    if schema > SCHEMA:
        raise SchemaTooNew(
            f"letter of schema {schema}, this Interlock reads up to {SCHEMA}: upgrade it first"
        )


def letters_socket(home: Path) -> Path:
    """The Unix socket where control exchanges letters with the processes of its node."""
    return socket_path(home, "control.sock")


def executor_socket(home: Path, version: Version) -> Path:
    """Where the executor of a version listens."""
    return socket_path(home, f"x-{hashlib.sha256(version.key.encode()).hexdigest()[:16]}.sock")


def socket_path(home: Path, name: str) -> Path:
    """`run/NAME` in the home folder; where that exceeds the 107 bytes of a Unix socket's path, a folder of
    the system's temporary files that is named after the home."""
    path = home.absolute() / "run" / name
    if len(str(path).encode()) <= 100:
        return path
    return (
        Path(tempfile.gettempdir())
        / f"interlock-{hashlib.sha256(str(home).encode()).hexdigest()[:16]}"
        / name
    )
