"""FastAPI around scikit-learn's predict without the thread hop: the event loop itself computes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.peers import Serving, fastapi_naive

TITLE = "FastAPI + scikit-learn, async def"
CONFIGURATION = f"{fastapi_naive.CONFIGURATION}; but `async def`, which blocks the loop"


def start(work: Path, port: int, core: int) -> Serving:
    """Start the program of `fastapi_naive` and ask its other endpoint."""
    serving = fastapi_naive.start(work, port, core)
    target = msgspec.structs.replace(serving.target, url=f"{serving.target.url}_async")
    return msgspec.structs.replace(serving, target=target)
