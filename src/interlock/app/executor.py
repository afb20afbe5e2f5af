"""Starts an executor process, `python -m interlock.app.executor ARGS [PACE]`, which imports 0.2 s of code."""

import importlib
import sys

from interlock.app.pace import ALL_GENTLY, at_once, gently, rise

if __name__ == "__main__":
    rise()
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    loading, reading = gently if word == ALL_GENTLY else at_once, gently if word else at_once
    loading(lambda: importlib.import_module("interlock.app.execution")).run(loading, reading)
