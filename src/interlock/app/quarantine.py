"""Owns run/quarantine.json: the versions that the supervisor gave up, as the other processes read it."""

from pathlib import Path

import msgspec

from interlock.app.link import write_atomically
from interlock.app.processes import Quarantined, is_quarantined
from interlock.core.letters import Desired, ModelDesired
from interlock.core.settings import run_folder

SCHEMA = 1


class _File(msgspec.Struct, frozen=True):
    quarantined: dict[str, Quarantined] = {}
    schema: int = SCHEMA


def quarantine_file(home: Path) -> Path:
    """Where it lies."""
    return run_folder(home) / "quarantine.json"


def read_quarantine(home: Path) -> dict[str, Quarantined]:
    """What is given up, by version key; nothing when the file is missing, damaged or too new: the version
    is then tried again, which costs a few crashes and no answer of another version."""
    try:
        found = msgspec.json.decode(quarantine_file(home).read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError):
        return {}
    return found.quarantined if found.schema <= SCHEMA else {}


def write_quarantine(home: Path, quarantined: dict[str, Quarantined]) -> None:
    """Replace the file at once. Raises: OSError."""
    write_atomically(quarantine_file(home), msgspec.json.encode(_File(quarantined)))


def reason_against(model: ModelDesired, version_key: str, quarantined: dict[str, Quarantined]) -> str | None:
    """Why a version of a Desired must not be loaded; None if it may.

    An entry spoken under an earlier release than the Desired names does not count any more, so it does not
    matter whether the supervisor has read that Desired before the worker or after it.
    """
    releases = releases_of(model)
    return quarantined[version_key].reason if is_quarantined(quarantined, version_key, releases) else None


def releases_of(model: ModelDesired) -> dict[str, int]:
    """The newest release that asks for each version, by key."""
    return {version.key: model.releases.get(version.number, 0) for version in model.versions}


def all_releases(desired: Desired) -> dict[str, int]:
    """`releases_of` for every model of a node."""
    return {key: release for model in desired.models for key, release in releases_of(model).items()}
