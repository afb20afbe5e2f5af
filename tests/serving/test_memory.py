"""A version is refused where its memory cannot be had, and nowhere else."""

from pathlib import Path

import pytest

from interlock.core.errors import LoadFailed
from interlock.core.model import Profile, Signature, Version
from interlock.serving.memory import available_bytes, want_memory


def needing(resident_bytes: int) -> Version:
    profile = Profile(resident_bytes=resident_bytes)
    return Version("m", "1", "sha256:" + "0" * 64, "onnx", "", Signature((), ()), profile=profile)


def test_only_what_needs_more_than_is_free_is_refused() -> None:
    free = available_bytes()
    if free is None:
        pytest.skip("this system does not tell what is free")
    want_memory(needing(0))
    want_memory(needing(free // 2))
    with pytest.raises(LoadFailed, match=r"^needs 1048576 MB of memory, \d+ MB are free$"):
        want_memory(needing(1 << 40))


def test_where_the_system_does_not_tell_nothing_is_known(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    assert available_bytes(told) is None
    told.write_text("MemTotal: 100 kB\n")
    assert available_bytes(told) is None
    told.write_text("MemTotal: 100 kB\nMemAvailable:       3 kB\n")
    assert available_bytes(told) == 3072
