"""A 600 KB image tensor in the V2 binary extension, against a server that only reads as many bytes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.node import Node, serve
from benchmarks.pairs import Goal, Plan, Row, compare
from benchmarks.peers import ask
from benchmarks.sides import reference, wrk_side
from interlock.operations.load import Request

CONNECTIONS = 8  # 32 of them would only fill the socket buffers: 20 MB in flight


def image_request(url: str) -> Request:
    """One FP32 image [1, 3, 224, 224] of sevens, asking for a binary answer."""
    raw = np.full((1, *models.IMAGE_SHAPE), 7, dtype="<f4").tobytes()
    tensor = {
        "name": "image",
        "shape": [1, *models.IMAGE_SHAPE],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return Request(url, head + raw, headers)


def run(plan: Plan) -> Iterator[Row]:
    """The goal's row with a model that costs nothing; and one whose model reads every byte (the mean)."""
    for reduce in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            artifact = models.write_image_onnx(work / "image.onnx", reduce)
            with Node(work / "home") as node, reference("reference_read.py", work) as (url, server):
                serve(node, "image", artifact)
                request = image_request(node.url("/v2/models/image/infer"))
                status, body = ask(request)
                if status != 200 or np.frombuffer(body[-4:], dtype="<f4")[0] != 7:
                    raise RuntimeError(f"Interlock answers wrongly: {status} {body[:300]!r}")
                ours = wrk_side("Interlock", request, node.processes, connections=CONNECTIONS)
                theirs = wrk_side(
                    "reads the bytes",
                    Request(url, request.body, request.headers),
                    server.processes,
                    connections=CONNECTIONS,
                    configuration="the same transport; answers once Content-Length bytes were read",
                )
                yield compare(
                    "binary-mean" if reduce else "binary",
                    f"600 KB FP32, binary, model {'takes the mean' if reduce else 'takes a pixel'}",
                    ours,
                    theirs,
                    goal=Goal() if reduce else Goal(0.6, 0.8),
                    plan=plan,
                    note=f"{CONNECTIONS} connections",
                )
