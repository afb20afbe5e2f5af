"""Decides which interpreter runs a version: the node's own, or that of the environment made for it."""

import sys
from collections.abc import Mapping
from pathlib import Path

from interlock.core.errors import EnvironmentFailed
from interlock.core.model import Version

OPTION = "environment"
"""The key of a version's options that holds the digest of its environment; "" is the node's own."""


def environment_path(home: Path, digest: str) -> Path:
    """Where a home folder keeps the environment with this digest ("sha256:<hex>")."""
    return home / "environments" / digest.removeprefix("sha256:")


def interpreter_of(home: Path, version: Version) -> str:
    """The interpreter for a process that loads a version.

    It is the node's own where the version's environment is missing: what `check_environment` says there
    reaches whoever waits for the version, as any other failure to load does.
    """
    digest = version.options.get(OPTION)
    python = environment_path(home, digest) / "bin" / "python" if digest else None
    return str(python) if python is not None and python.exists() else sys.executable


def variables_for(python: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a process under `python`: in another interpreter than ours, without those
    that would bring our packages into it."""
    if python == sys.executable:
        return dict(given)
    return {name: value for name, value in given.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def check_environment(version: Version) -> None:
    """Nothing, if this process runs in the version's environment.

    Raises: EnvironmentFailed.
    """
    digest = version.options.get(OPTION)
    if digest and Path(sys.prefix).name != digest.removeprefix("sha256:"):
        raise EnvironmentFailed(
            f"{version.key} needs its own environment {digest[7:19]}, which is not in this home (copied or "
            f"cleaned up?): build it anew with: interlock release {version.model} {version.number}"
        )
