"""Decides whether there is memory for one more version on this machine, before it is loaded."""

from pathlib import Path

from interlock.core.errors import LoadFailed
from interlock.core.model import Version


def want_memory(version: Version) -> None:
    """Refuse a version that needs more memory than is free, by what registration measured.

    Only what is free now counts: versions that load at the same moment do not know of each other.
    Raises: LoadFailed.
    """
    need, free = version.profile.resident_bytes, available_bytes()
    if free is not None and need > free:
        raise LoadFailed(f"needs {need >> 20} MB of memory, {free >> 20} MB are free")


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping, where the system tells (Linux's MemAvailable)."""
    try:
        with meminfo.open() as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
