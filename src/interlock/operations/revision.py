"""Asks git which revision a folder stands at; no git, no repository and no commit are an answer, no error."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from interlock.core.provenance import Code

LIMIT_S = 5.0
"""How long all questions about one folder may take together; a repository on a slow disk is left out then."""

# What a repository's own settings could make git run or ask is off.
_GIT = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "credential.helper=")
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def revision(folder: Path, limit_s: float = LIMIT_S) -> Code | None:
    """The commit, branch, state and remote of the repository around a folder, or None."""
    until_s = time.monotonic() + limit_s
    found = _ask(folder, until_s, "rev-parse", "--show-toplevel", "HEAD")
    if found is None or len(lines := found.splitlines()) != 2:
        return None
    top, commit = lines
    branch = _ask(folder, until_s, "symbolic-ref", "--quiet", "--short", "HEAD")
    changed = _ask(folder, until_s, "status", "--porcelain", "--untracked-files=no")
    remote = _ask(folder, until_s, "config", "--get", "remote.origin.url")
    return Code(
        commit=commit,
        folder=top,
        branch=branch or None,
        dirty=None if changed is None else bool(changed),
        remote=None if not remote else without_credentials(remote),
    )


def is_changed(file: Path, limit_s: float = LIMIT_S) -> bool | None:
    """Whether a file is not committed as it is (new ones are not); None where git does not say."""
    said = _ask(
        file.parent, time.monotonic() + limit_s, "status", "--porcelain", "--ignored", "--", file.name
    )
    return None if said is None else bool(said)


def without_credentials(url: str) -> str:
    """A URL with no user, password, query or fragment; "git@host:path" names no secret and stays.

    >>> without_credentials("https://me:secret@example.org/team/model.git?token=x")
    'https://example.org/team/model.git'
    >>> without_credentials("git@example.org:team/model.git")
    'git@example.org:team/model.git'
    """
    if "://" not in url:
        return re.sub(r"^([^@/:]*):[^@/]*@", r"\1@", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/]*@", "//", url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _ask(folder: Path, until_s: float, *words: str) -> str | None:
    """What git prints, without the line end; None if it failed, is not there or took too long."""
    git, left_s = shutil.which("git"), until_s - time.monotonic()
    if git is None or left_s <= 0:
        return None
    # The caller's own repository (as in a hook of git's) is not the folder's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            [git, *_GIT, "-C", str(folder), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=left_s,
            env={**environment, **_ENVIRONMENT},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
