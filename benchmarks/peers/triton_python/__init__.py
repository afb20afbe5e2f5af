"""Triton's C++ server with its Python backend: ONNX Runtime inside a Python model, dynamic batching."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks import envs, models
from benchmarks.peers import Serving, Target, v2_body, v2_label
from benchmarks.process import Started

TITLE = "Triton 2.51, Python backend"
CONFIGURATION = (
    "nvidia-pytriton 0.7.0's tritonserver; one model instance on the CPU, max_batch_size 128, "
    "dynamic_batching without queue delay, ONNX Runtime on one thread inside model.py; "
    "HTTP only (gRPC and metrics off), default logging; same iris ONNX file and request body as Interlock"
)
_HERE = Path(__file__).parent


def start(work: Path, port: int, core: int) -> Serving:
    """Start it; `work` receives the model repository."""
    bin_folder = envs.ensure("triton_python")
    asked = (
        "import sys, sysconfig as s;"
        "print(sys.version_info[1], s.get_config_var('LIBDIR'), s.get_path('purelib'))"
    )
    ran = subprocess.run([bin_folder / "python", "-c", asked], capture_output=True, text=True, check=True)
    minor, lib_folder, site = ran.stdout.split()
    server = Path(site, "pytriton", "tritonserver")
    # The backend starts the stub that lies beside it, and it must be built for the Python in use.
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / f"3.{minor}" / stub.name, stub)
    repository = work / "models"
    shutil.copytree(_HERE / "models", repository, dirs_exist_ok=True)
    models.write_iris_onnx(repository / "iris" / "1" / "iris.onnx")
    process = Started(
        [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={server / 'backends'}",
            f"--http-port={port}",
            "--http-address=127.0.0.1",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--backend-config=python,shm-region-prefix-name=interlock-bench",
        ],
        cores=core,
        log=work / "triton.log",
        env={
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": f"{site}/nvidia_pytriton.libs:{lib_folder}",
            "VIRTUAL_ENV": str(bin_folder.parent),
            "PYTHONPATH": site,
        },
    )
    target = Target(f"http://127.0.0.1:{port}/v2/models/iris/infer", v2_body, v2_label)
    return Serving(process, target)
