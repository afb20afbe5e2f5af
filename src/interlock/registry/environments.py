"""Owns the environments of models: a folder named by what is installed in it is whole, or it is not there.

Each is a virtual environment with the model's own packages, and a link to this Interlock, which needs two
packages there: msgspec and NumPy.
"""

import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from interlock.core.errors import EnvironmentFailed
from interlock.registry.requirements import Requirements, check_python, digest_of, to_install, unmet
from interlock.runtime.environment import environment_path

DEFAULT_BUILD_S = 900.0
_POLL_S = 0.1
_TOLD = ("Collecting ", "Installing ", "Building ")
_PACKAGE = Path(__file__).resolve().parents[1]
_KEPT = ("PIP_", "LC_", "SSL_", "XDG_CACHE_")
_KEPT_NAMES = frozenset(
    {"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "REQUESTS_CA_BUNDLE", "CC", "CXX", "NETRC"}
    | {f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")}
)
_ELSEWHERE = frozenset(
    {"PIP_TARGET", "PIP_USER", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PIP_PYTHON"}
)


def ensure(
    home: Path,
    requirements: Requirements,
    folder: Path,
    *,
    time_s: float = DEFAULT_BUILD_S,
    progress: Callable[[str], object] = lambda message: None,
) -> str:
    """The digest of the environment that meets the requirements, built if it is not there; "" if the node's
    own meets them.

    `folder` is the model's, from which requirements may name files. Of several processes that want the same
    environment, one builds it and the others wait.
    Raises: EnvironmentFailed: another Python, pip's own words, no more than `time_s`. Nothing is left then.
    """
    check_python(requirements)
    first = unmet(requirements, installed_version)
    if first is None:
        progress("the node's own environment meets the model's requirements")
        return ""
    progress(f"the model needs an environment of its own: the node's does not have {first}")
    return build(home, requirements, folder, time_s=time_s, progress=progress)


def build(
    home: Path,
    requirements: Requirements,
    folder: Path,
    *,
    time_s: float = DEFAULT_BUILD_S,
    progress: Callable[[str], object] = lambda message: None,
) -> str:
    """As `ensure`, whatever the node's own environment has."""
    check_python(requirements)
    digest = digest_of(requirements, folder)
    target = environment_path(home, digest)
    until_s = time.monotonic() + time_s
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(target, until_s, progress) as lock:
            if (target / "bin" / "python").exists():
                _link(target)
                return digest
            progress("building the environment")
            _build(target, requirements, folder, until_s, lock, progress)
    except OSError as error:
        raise EnvironmentFailed(f"environment {target}: {error}; nothing was left") from error
    return digest


def installed_version(package: str) -> str | None:
    """The version of a package in this process's environment, None if it has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_variables(given: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that pip gets: its own, proxies, certificates; no other secrets."""
    kept = {
        name: value
        for name, value in given.items()
        if (name.startswith(_KEPT) or name in _KEPT_NAMES or name.lower() in _KEPT_NAMES)
        and name not in _ELSEWHERE
    }
    return {**kept, "PYTHONNOUSERSITE": "1", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _build(
    target: Path,
    requirements: Requirements,
    folder: Path,
    until_s: float,
    lock: int,
    progress: Callable[[str], object],
) -> None:
    # Its name is the lock's to give: what a killed process left under it is nobody's now.
    partial = target.with_name(f".partial-{target.name}")
    _remove(partial)
    try:
        venv.create(partial, symlinks=True, with_pip=False)
        _link(partial)
        wanted, bounds = partial / "requirements.txt", partial / "constraints.txt"
        lines = to_install(requirements, importlib.metadata.version("msgspec"))
        wanted.write_text("".join(f"{line}\n" for line in lines))
        bounds.write_text("".join(f"{line}\n" for line in requirements.constraints))
        command = [sys.executable, "-P", "-m", "pip", "--python", str(partial / "bin" / "python")]
        command += ["install", "-r", str(wanted), "-c", str(bounds)]
        _run(command, folder, partial / "pip.log", until_s, lock, progress)
        os.sync()  # its many files, before a name says that they are whole
        _remove(target)
        partial.rename(target)
    finally:
        _remove(partial)


def _run(
    command: list[str],
    folder: Path,
    log: Path,
    until_s: float,
    lock: int,
    progress: Callable[[str], object],
) -> None:
    """pip, in the model's folder. It holds the lock, too: should this process be killed, nobody builds in the
    same place before pip has ended."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=pip_variables(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=(lock,),
            start_new_session=True,
            umask=0o077,
        )
    told = 0
    try:
        while child.poll() is None and time.monotonic() < until_s:
            time.sleep(_POLL_S)
            told = _tell(log, told, progress)
        late = child.poll() is None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    said = log.read_text(errors="replace")
    if late:
        raise EnvironmentFailed(
            f"the environment was not built in its time; pip last said: {said[-400:].strip()}"
        )
    if child.returncode:
        at = said.find("ERROR:")
        words = said[-1000:].strip() if at < 0 else said[at:].strip()
        hint = "; install pip beside Interlock" if "No module named pip" in words else ""
        raise EnvironmentFailed(
            f"pip cannot install what the model requires: {words[:1500]}{hint}; log the model again with "
            "requirements that can be had, or give pip the index (PIP_INDEX_URL) that has them"
        )


def _tell(log: Path, told: int, progress: Callable[[str], object]) -> int:
    """Pass on what pip said since; returns how far that was."""
    with log.open("rb") as file:
        file.seek(told)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if line.startswith(_TOLD):
            progress(f"pip: {line.partition(' (from')[0][:200]}")
    return told + len(whole)


def _link(environment: Path) -> None:
    """Make this Interlock importable there, without what is installed beside it here."""
    packages = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    link = environment / "node" / "interlock"
    link.parent.mkdir(exist_ok=True)
    if not link.exists() or link.resolve() != _PACKAGE:
        fresh = link.with_name(f"interlock-{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(_PACKAGE)
        fresh.replace(link)
    # By its place relative to the packages': the environment is built under another name.
    (packages / "interlock-node.pth").write_text("../../../node\n")


@contextmanager
def _lock(target: Path, until_s: float, progress: Callable[[str], object]) -> Iterator[int]:
    """Be the only process that builds `target`; gives the descriptor that says so."""
    descriptor = os.open(
        target.with_name(f".lock-{target.name}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise EnvironmentFailed(
                        f"another process has been building the environment {target.name[:12]} for too long"
                    ) from None
                if not waited:
                    progress("another process builds this environment: waiting for it")
                waited = True
                time.sleep(_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
