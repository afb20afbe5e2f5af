"""Decides which packages a model of MLflow's needs, and whether the node has them already.

Pure but for reading the model's folder.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from interlock.core.errors import EnvironmentFailed

_COMMENT = re.compile(r"(^|\s+)#.*$")
_INCLUDE = re.compile(r"^(?:-r|--requirement|-c|--constraint)[ =]+(?P<file>\S+)$")


class Requirements(msgspec.Struct, frozen=True):
    """What pip is to install, a line each, sorted. `python`: the version that the model was made with."""

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    python: str | None = None


def read(folder: Path) -> Requirements:
    """What an MLflow folder states: requirements.txt, else python_env.yaml, else the pip part of conda.yaml.

    Raises: EnvironmentFailed for a file that cannot be read.
    """
    try:
        conda, virtualenv = _yaml(folder / "conda.yaml"), _yaml(folder / "python_env.yaml")
        named = [str(item) for item in conda.get("dependencies", ()) if isinstance(item, str)]
        python = virtualenv.get("python") or next(
            (item.partition("=")[2].lstrip("=") for item in named if item.startswith("python=")), None
        )
        lines: list[str] = []
        constraints: list[str] = []
        if (folder / "requirements.txt").is_file():
            given = ["-r requirements.txt"]
        elif virtualenv:
            given = [str(item) for item in virtualenv.get("dependencies", ())]
        else:
            parts = [item for item in conda.get("dependencies", ()) if isinstance(item, dict)]
            given = [str(line) for part in parts for line in part.get("pip", ())]
        for line in given:
            _add(folder, line, lines, constraints, 0)
    except EnvironmentFailed:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EnvironmentFailed(
            f"the requirements in {folder.name} cannot be read: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return Requirements(
        tuple(sorted(set(lines))), tuple(sorted(set(constraints))), None if python is None else str(python)
    )


def check_python(requirements: Requirements, ours: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Nothing, if the model was made with our Python, whatever the patch.

    Raises: EnvironmentFailed.
    >>> check_python(Requirements(python="3.11.2"), (3, 11))
    """
    wanted = requirements.python
    if wanted is None or re.match(rf"{ours[0]}\.{ours[1]}(\D|$)", wanted):
        return
    here = ".".join(str(part) for part in ours)
    raise EnvironmentFailed(
        f"the model was made with Python {wanted}, and this node has {here}: log it again with Python "
        f"{here}, or run a node under Python {'.'.join(wanted.split('.')[:2])}"
    )


def to_install(requirements: Requirements, msgspec_version: str) -> tuple[str, ...]:
    """The lines for pip: the model's own, and what Interlock needs in the same process.

    `mlflow` becomes `mlflow-skinny` of the same version, which loads a model and brings a tenth of the files;
    with extras it stays.
    >>> to_install(Requirements(("mlflow==3.1.0", "numpy==2.1.0")), "0.20.0")
    ('mlflow-skinny==3.1.0', 'numpy==2.1.0', 'msgspec==0.20.0', 'pandas<3')
    """
    lines = [_skinny(line) for line in requirements.lines]
    names = {canonicalize_name(found.name) for found in map(_parsed, lines) if found is not None}
    lines.append("msgspec>=0.20" if "msgspec" in names else f"msgspec=={msgspec_version}")
    if not names & {"mlflow", "mlflow-skinny"}:
        lines.append("mlflow-skinny")
    if "numpy" not in names:
        lines.append("numpy")
    if "pandas" not in names:
        lines.append("pandas<3")  # MLflow's pyfunc imports it, and its own bound is this one
    return tuple(lines)


def unmet(requirements: Requirements, version_of: Callable[[str], str | None]) -> str | None:
    """The first line that what is installed does not meet; None if it meets all.

    `version_of`: the installed version of a package, by its name. Lines that name no version of a package
    (files, addresses, options of pip, extras) count as not met.
    >>> unmet(Requirements(("a>=1", "b")), {"a": "1.2"}.get)
    'b'
    """
    for line in requirements.lines:
        wanted = _parsed(_skinny(line))
        if wanted is None or wanted.url or wanted.extras:
            return line
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = version_of(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            return line
    for line in requirements.constraints:
        wanted = _parsed(line)
        if wanted is None or wanted.url:
            return line
        found = version_of(wanted.name)
        if found is not None and not wanted.specifier.contains(found, prereleases=True):
            return line
    return None


def digest_of(requirements: Requirements, folder: Path) -> str:
    """What names an environment: the lines, our Python, the bytes of files in `folder` that lines name."""
    files = {}
    for line in requirements.lines:
        path = folder / line
        if _parsed(line) is None and not line.startswith("-") and path.is_file():
            files[line] = hashlib.sha256(path.read_bytes()).hexdigest()
    python = [sys.implementation.name, *sys.version_info[:2]]
    text = json.dumps([python, requirements.lines, requirements.constraints, files])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _add(folder: Path, line: str, lines: list[str], constraints: list[str], depth: int) -> None:
    line = _COMMENT.sub("", line).strip()
    include = _INCLUDE.match(line)
    if include is None:
        if line:
            lines.append(line)
        return
    path = folder / include["file"]
    if not path.resolve().is_relative_to(folder.resolve()) or depth > 8:
        raise EnvironmentFailed(f"the model's requirements include {include['file']}, outside of its folder")
    into = constraints if line.startswith(("-c", "--c")) else lines
    for inner in _joined(path.read_text()):
        _add(folder, inner, into, constraints, depth + 1)


def _joined(text: str) -> Iterator[str]:
    """Lines, those that a backslash continues as one."""
    yield from re.sub(r"\\\r?\n", " ", text).splitlines()


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: {error}") from None
    return found if isinstance(found, dict) else {}


def _parsed(line: str) -> Requirement | None:
    # Hashes make pip ask for one of everything; `unmet` and names do without them.
    try:
        return Requirement(line.partition(" --hash")[0])
    except InvalidRequirement:
        return None


def _skinny(line: str) -> str:
    wanted = _parsed(line)
    if wanted is None or wanted.name.lower() != "mlflow" or wanted.extras or wanted.url:
        return line
    marker = f"; {wanted.marker}" if wanted.marker else ""
    return f"mlflow-skinny{wanted.specifier}{marker}"
