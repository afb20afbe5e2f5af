"""Closed-loop load by `wrk`: how many requests per second a server can answer."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import msgspec

from benchmarks.process import CLIENT_CORE, pinned
from interlock.operations.load import Request


class WrkResult(msgspec.Struct, frozen=True):
    """What one run of wrk saw; latencies in microseconds, from the actual send time."""

    requests: int
    seconds: float
    per_s: float
    p50_us: float
    p99_us: float
    max_us: float
    bad_status: int
    connect_errors: int
    read_errors: int
    write_errors: int
    timeouts: int

    @property
    def failures(self) -> int:
        return self.bad_status + self.connect_errors + self.read_errors + self.write_errors + self.timeouts


_WRK_SCRIPT = """
local file = io.open(%(body)s, "rb")
wrk.method = %(method)s
wrk.body = file:read("*a")
file:close()
%(headers)s
done = function(summary, latency, requests)
  local e = summary.errors
  local names = {"requests", "duration_us", "p50_us", "p99_us", "max_us",
    "bad_status", "connect_errors", "read_errors", "write_errors", "timeouts"}
  local values = {summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, e.status, e.connect, e.read, e.write, e.timeout}
  local parts = {}
  for i = 1, #names do parts[i] = string.format('"%%s":%%d', names[i], values[i]) end
  io.write("WRK {" .. table.concat(parts, ",") .. "}\\n")
end
"""


def wrk_script(request: Request, body: Path) -> str:
    """The Lua script that makes wrk send `request`, whose body lies in the file `body`."""
    headers = "\n".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()
    )
    return _WRK_SCRIPT % {
        "body": json.dumps(str(body)),
        "method": json.dumps(request.method),
        "headers": headers,
    }


def parse_wrk(output: str) -> WrkResult:
    """Read the line that `wrk_script` makes wrk print.

    Raises: ValueError with the output, if there is no such line.
    """
    found = re.search(r"^WRK (\{.*\})$", output, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no result: {output!r}")
    line = json.loads(found.group(1))
    seconds = line.pop("duration_us") / 1e6
    return WrkResult(seconds=seconds, per_s=line["requests"] / seconds, **line)


def wrk(request: Request, seconds: float, *, connections: int = 32, core: int = CLIENT_CORE) -> WrkResult:
    """One thread pinned to `core` keeps `connections` requests in flight; seconds round up to whole ones.

    Raises: RuntimeError if wrk is missing (Debian: apt-get install wrk) or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "request.lua")
        body.write_bytes(request.body)
        script.write_text(wrk_script(request, body))
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds + 0.49))}s", "--timeout", "10s"]
        try:
            ran = subprocess.run(
                pinned([*argv, "-s", str(script), request.url], core),
                capture_output=True,
                text=True,
                timeout=seconds + 60,
                check=False,
            )
        except FileNotFoundError as error:
            raise RuntimeError("wrk is not installed; on Debian: apt-get install wrk") from error
    if ran.returncode != 0:
        raise RuntimeError(f"wrk ended with {ran.returncode}: {ran.stdout}{ran.stderr}")
    return parse_wrk(ran.stdout)
