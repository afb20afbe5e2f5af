"""What loading a model must not leave behind: ONNX Runtime's telemetry writes files and calls home."""

import os
import subprocess
import sys
from pathlib import Path

from tests.runtime import models

LOAD_AND_PREDICT = """
import os, sys
from pathlib import Path
from interlock.runtime.check import check
from interlock.core.model import Signature, Version
folder = Path(sys.argv[1])
version = Version("m", "1", "sha256:0", "onnx", sys.argv[2], Signature((), ()))
assert check(folder, version).failures == ()
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""


def test_nothing_of_telemetry_stays(tmp_path: Path) -> None:
    artifact, temporary, home = (tmp_path / name for name in ("artifact", "tmp", "home"))
    for folder in (artifact, temporary, home):
        folder.mkdir()
    version = models.MODELS["two inputs, two outputs"](artifact)
    # The library keeps quiet under CI and under its own switch: neither may be what keeps it quiet here.
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(
        [sys.executable, "-c", LOAD_AND_PREDICT, str(artifact), version.entry],
        env={**kept, "TMPDIR": str(temporary), "HOME": str(home)}, check=True, timeout=60,
    )  # fmt: skip
    assert [path for folder in (temporary, home) for path in folder.rglob("*")] == []
