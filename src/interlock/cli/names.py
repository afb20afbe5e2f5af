"""Decides which names of models a command suggests: those of the node, or of the home folder."""

from difflib import get_close_matches
from pathlib import Path

from interlock.core.errors import InterlockError
from interlock.operations.control import open_control
from interlock.operations.discovery import find_node


def names_for_completion(home: Path, url: str | None) -> list[str]:
    """The models of a running node, for a shell; nothing where that would take long or go wrong."""
    try:
        node = None if url else find_node(home)
        if not url and node is None:
            return []
        with open_control(home, url) as control:
            return [model.name for model in control.status().models]
    except (InterlockError, OSError):
        return []


def near_names(name: str, home: Path, url: str | None) -> list[str]:
    """The models whose names are much like `name`, likest first; none where they cannot be listed."""
    try:
        with open_control(home, url) as control:
            known = [model.name for model in control.status().models]
    except (InterlockError, OSError):
        return []
    return [found for found in get_close_matches(name, known, n=3) if found != name]
