"""Holds the README's table of limits to the settings that enforce them."""

from pathlib import Path

import pytest

from interlock.app.processes import Limits
from interlock.codec.raw import MOST_TEXTS
from interlock.codec.v2unit import MOST_UNIT_BYTES
from interlock.core.model import Capabilities, ModelSettings
from interlock.core.settings import MAX_WORKERS, NodeConfig
from interlock.operations.access import MIN_TOKEN
from interlock.operations.score_parts import MOST_PART_ROWS, PART_BYTES, PART_S
from interlock.runtime.answer_process import DEFAULT_CALL_S
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S
from interlock.serving.loader import LOAD_LIMIT_S
from interlock.wire.headers import MOST_LABEL_BYTES
from interlock.wire.http_limits import BODY_MIN_BYTES_PER_S, HttpLimits

HTTP, NODE, MODEL, CRASHES = HttpLimits(), NodeConfig(home=Path()), ModelSettings(), Limits()
KIB, MIB, GIB = 2**10, 2**20, 2**30

SAID = {
    "body of a request": f"{NODE.max_body_bytes // MIB} MiB",
    "JSON in a request": f"{NODE.max_json_bytes // MIB} MiB",
    "elements of one binary BYTES": f"{MOST_TEXTS:,}",
    "request line and headers": (
        f"{HTTP.max_header_bytes // KIB} KiB, {HTTP.max_headers} lines, then 431; "
        f"the target {HTTP.max_url_bytes // KIB} KiB"
    ),
    "`x-interlock-unit`": f"{MOST_LABEL_BYTES} bytes each",
    "rows waiting": f"{MODEL.queue_rows:,}",
    "rows of one batch": f"{Capabilities().max_batch_rows} at most",
    "time-out of a request": (
        f"{MODEL.default_timeout_s:g} s if the client names none; longer than {MODEL.max_timeout_s:g} s"
    ),
    "headers of a request to arrive": f"{HTTP.header_timeout_s:g} s",
    "silence within a body": f"{HTTP.body_timeout_s:g} s, and after {HTTP.body_timeout_s:g} s at least "
    f"{BODY_MIN_BYTES_PER_S} bytes/s",
    "idle connection": f"{HTTP.idle_timeout_s:g} s",
    "connections of one worker": (
        f"{HTTP.max_connections:,}; further ones wait in the kernel; {HTTP.max_pipelined} requests"
    ),
    "workers": f"| {MAX_WORKERS} |",
    "loading a version": (f"{LOAD_LIMIT_S:g} s; {DEFAULT_TIME_S:g} s and {DEFAULT_MEMORY_BYTES // GIB} GiB"),
    "memory of one executor": f"{NODE.executor_memory_bytes // GIB} GiB",
    "crashes of a version": (
        f"{CRASHES.tries_load} while loading, {CRASHES.tries_isolated} on a request of its own "
        f"(executors: in a row), {CRASHES.tries_any} in all"
    ),
    "one part of a batch run": (
        f"{PART_BYTES // MIB} MiB of input, {PART_S:g} s of the model, {MOST_PART_ROWS:,} rows"
    ),
    "one call of the model in a batch run": f"{DEFAULT_CALL_S:g} s",
    "token of the admin API": f"at least {MIN_TOKEN} characters",
}


def test_a_unit_may_be_as_long_wherever_it_is() -> None:
    assert MOST_UNIT_BYTES == MOST_LABEL_BYTES


def lines(text: str) -> list[str]:
    """The rows of the table under the heading Limits."""
    section = text.split("## Limits\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("what", SAID)
def test_a_limit_in_the_readme_is_the_one_that_holds(what: str, repository: Path) -> None:
    found = [line for line in lines((repository / "README.md").read_text()) if line.startswith(f"| {what}")]
    assert len(found) == 1 and SAID[what] in found[0], f"want {SAID[what]!r} in {found}"


def test_no_limit_stands_there_unchecked(repository: Path) -> None:
    rows = lines((repository / "README.md").read_text())
    unchecked = [row for row in rows if not any(row.startswith(f"| {what}") for what in SAID)]
    # The rule for names is held by the doctests of core/model.py.
    assert [row.split("|")[1].strip() for row in unchecked] == ["model name"]
