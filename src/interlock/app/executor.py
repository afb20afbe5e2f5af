"""Starts an executor process, `python -m interlock.app.executor ARGS [PACE]`, which imports 0.2 s of code."""

import importlib
import os
import sys

from interlock.app.pace import ALL_GENTLY, at_once, gently, rise

if __name__ == "__main__":
    rise()
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    loading, reading = gently if word == ALL_GENTLY else at_once, gently if word else at_once
    if word == ALL_GENTLY:
        # numpy's own threads, of which a session makes no use, cost 0.1 s at the start, and would stay low.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    loading(lambda: importlib.import_module("interlock.app.execution")).run(loading, reading)
