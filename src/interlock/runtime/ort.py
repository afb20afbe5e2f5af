"""Decides how ONNX Runtime is imported: with its telemetry off.

Since 1.29 the official Linux builds report to their vendor what models they load, keep a device identifier
and a database under ~/.cache, and leave `.ses` in the temporary folder. The environment variable counts while
the library is loaded; the call switches off a library that somebody else has imported before.
"""

import os

SWITCH = "ORT_DISABLE_TELEMETRY"

_before = os.environ.get(SWITCH)
os.environ[SWITCH] = "1"
try:
    import onnxruntime as onnxruntime
finally:
    if _before is None:
        del os.environ[SWITCH]
    else:
        os.environ[SWITCH] = _before

onnxruntime.disable_telemetry_events()
