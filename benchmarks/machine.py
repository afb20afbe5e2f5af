"""Owns what a result says about where it was measured, and the file that the result goes to."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import msgspec

_HERE = Path(__file__).resolve().parent
PACKAGES = ("interlock", "numpy", "msgspec", "httptools", "uvloop", "onnxruntime", "scikit-learn", "skl2onnx")


class Machine(msgspec.Struct, frozen=True):
    """The machine and the software of one run."""

    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    packages: dict[str, str]
    wrk: str
    commit: str
    load_before: float  # one-minute load average when the run began: above ~0.3, others were using the cores
    began: str


def _said(argv: list[str]) -> str:
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, cwd=_HERE, check=False)
    except FileNotFoundError:
        return "absent"
    return (ran.stdout or ran.stderr).strip()


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def this_machine() -> Machine:
    """Describe the machine that runs this process, now."""
    found = re.search(r"wrk\s+(\S+)", _said(["wrk", "-v"]))
    changed = bool(_said(["git", "status", "--porcelain", "--", "../src"]))
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        wrk=found.group(1) if found else "absent",
        commit=_said(["git", "rev-parse", "--short", "HEAD"]) + ("+changes" if changed else ""),
        load_before=round(os.getloadavg()[0], 2),
        began=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def write_result(name: str, record: msgspec.Struct, folder: Path = _HERE / "results") -> Path:
    """Write `record` as `<date>-<name>.json`; a second result of the same day gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    path, number = folder / f"{day}-{name}.json", 2
    while path.exists():
        path, number = folder / f"{day}-{name}-{number}.json", number + 1
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path
