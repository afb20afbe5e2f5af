"""Owns the peers' virtual environments: `.venv-peers/NAME`, made on demand from pinned requirements."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
FOLDER = _HERE.parent / ".venv-peers"


def stamp_of(name: str) -> str:
    """What an up-to-date environment of the peer carries in `.stamp`: its pins and the Python version."""
    pins = (_HERE / "peers" / name / "requirements.txt").read_bytes()
    return f"{sys.version_info[0]}.{sys.version_info[1]} {hashlib.sha256(pins).hexdigest()}"


def is_current(name: str) -> bool:
    """Whether the environment exists and was made from the present requirements."""
    stamp = FOLDER / name / ".stamp"
    return stamp.exists() and stamp.read_text() == stamp_of(name)


def ensure(name: str) -> Path:
    """Make the environment if it is missing or out of date; its folder of programs.

    Raises: RuntimeError with pip's output if the installation fails.
    """
    home = FOLDER / name
    bin_folder = home / "bin"
    if is_current(name):
        return bin_folder
    print(
        f"benchmarks: installing the peer {name} into {home.relative_to(_HERE.parent)} (once)",
        file=sys.stderr,
    )
    python = getattr(sys, "_base_executable", sys.executable)
    for argv in (
        [python, "-m", "venv", "--clear", str(home)],
        [str(bin_folder / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        + ["-r", str(_HERE / "peers" / name / "requirements.txt")],
    ):
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise RuntimeError(
                f"{' '.join(argv)} ended with {ran.returncode}: {ran.stdout[-1500:]}{ran.stderr[-1500:]}"
            )
    (home / ".stamp").write_text(stamp_of(name))
    return bin_folder


def fit_iris(bin_folder: Path, model: Path) -> Path:
    """Fit iris with the scikit-learn of that environment and write it to `model` (joblib)."""
    subprocess.run([bin_folder / "python", _HERE / "models.py", "--joblib", model], check=True)
    return model


def versions(name: str) -> dict[str, str]:
    """The pinned packages of the peer `name`; none where it runs in another one's environment."""
    pins = _HERE / "peers" / name / "requirements.txt"
    lines = pins.read_text().splitlines() if pins.is_file() else []
    return dict(line.split("==", 1) for line in lines if "==" in line)
