"""Writes the reference pages that are made from the code: python docs/reference/generate.py.

A test holds the pages to what this makes. metrics.md is written by hand around a table that a test holds.
"""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import click
import msgspec

from interlock.api.app import AdminDeps, openapi
from interlock.api.asked import ReleaseRequest
from interlock.api.problems import STATUSES
from interlock.cli.main import COMMANDS, cli
from interlock.cli.options import ENVIRONMENT
from interlock.core import errors
from interlock.core.errors import InterlockError
from interlock.core.policy import Policy
from interlock.core.settings import NodeConfig
from interlock.operations.context import open_context
from interlock.operations.release import KEEP_S
from interlock.operations.status import NodeStatus

FOLDER = Path(__file__).parent

_NOTE = "<!-- Made by docs/reference/generate.py; change the code, not this page. -->"


EXIT_CODES = {
    "0": "it was done",
    "1": "it failed; for `status`: the node is not ready; for `release --selftest`: something did not hold",
    "2": "the command line was wrong",
    "3": "`score --errors null`: it was done, and some rows have no answer",
    "130": "interrupted",
}


def cli_page() -> str:
    """Every command with its help, the environment, the exit codes."""
    parts = [
        f"# Command line\n\n{_NOTE}\n",
        "A command finds its node by `--url`, else by `--home`. Where a node runs in the home folder, it\n"
        "asks that node's admin API; where none runs, it works on the home folder itself. `predict` and\n"
        "`quarantine` ask what only a running node has.\n",
        "Three commands take `--home` alone, whatever `INTERLOCK_URL` says:\n",
        "- `up` starts the processes of a home folder, and `down` stops them by a signal: both act on\n"
        "  this machine.\n"
        "- `register` reads the file where it lies, and writes into the registry and into the home\n"
        "  folder's cache and ledger, whether a node runs or not.\n\n"
        "So does `release --selftest`, which wants a node that runs there.\n",
        "Listing commands print tables for people and, with `--json`, the admin API's own structs for\n"
        "programs. Results go to standard output, progress and errors to standard error.\n",
        _table(["exit code", "meaning"], EXIT_CODES.items()),
        _table(["variable", "meaning"], ((f"`{name}`", line) for name, line in ENVIRONMENT.items())),
        "Complete commands, options and model names in bash, zsh or fish:\n"
        '`eval "$(interlock completion bash)"`.\n',
    ]
    top = click.Context(
        cli,
        info_name="interlock",
        help_option_names=["-h", "--help"],
        max_content_width=100,
        terminal_width=100,
    )
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        ctx = click.Context(command, info_name=name, parent=top, max_content_width=100, terminal_width=100)
        parts.append(f"## interlock {name}\n\n```text\n{command.get_help(ctx).rstrip()}\n```\n")
    return "\n".join(parts)


def _table(heads: list[str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- | --- |", "|---|---|")


def admin_api_page(app: dict[str, object]) -> str:
    """Every path of the OpenAPI description, with its first line."""
    paths = app["paths"]
    assert isinstance(paths, dict)
    rows = "".join(
        f"| `{method.upper()} {path}` | {operation['description'].splitlines()[0]} |\n"
        for path, methods in paths.items()
        for method, operation in methods.items()
    )
    *names, last = [f"`{name}`" for name in get_args(get_type_hints(ReleaseRequest)["strategy"])]
    strategies, default = f"{', '.join(names)} or {last}", ReleaseRequest().strategy
    policy = msgspec.json.format(msgspec.json.encode(Policy())).decode()
    return f"""# Admin API

{_NOTE}

On port 8002 of the node, next to the metrics. `GET /api/openapi.json` describes every path, body and answer.

| path | what it does |
|---|---|
{rows}
A release or a rollback is answered with `202` and its row; it goes on, so follow it at `/api/releases/{{id}}`
until its `state` is `done`, `passed` (a shadow), `failed` or `superseded`.
A canary may also stop in `paused`, where it waits for a person: `resume`, `promote` or `abort`.

## The body of a release

Empty, it asks for the newest version, all at once. Else it is an object, in which each field may be left out:

```json
{{"version": "2", "strategy": "canary", "policy": {{"budget": 20, "slower": 1.5}}}}
```

- `version` is a number (`"2"`), `alias` an alias of the registry (`"champion"`). With neither, the newest is
  taken; both are answered with 400.
- `strategy` is {strategies}. The default is `{default}`, and that of the command is a canary: the body
  `{{"version": "2"}}` gives version 2 all requests at once, `interlock release iris 2` a share of them.
- `policy` is for `canary` and `shadow`: how the candidate is tried. These are its fields and their defaults;
  `/api/openapi.json` says what each means (`Policy`), and most are options of `interlock release`
  ([cli.md](cli.md)).

```json
{policy}
```

- `keep_s` is for `blue-green` alone: how many seconds the old version stays in memory after the switch,
  {KEEP_S:g} by default. A canary's is in its policy.

A field that is not listed here, or a value out of its range, is answered with 400. The body of `resume` is
empty or `{{"budget": 100}}`, which replaces the budget of the policy.

## Errors

Errors are `{{"error": {{"code": "ModelNotFound", "message": "…"}}}}`; [errors.md](errors.md) lists the codes.

## Who may ask

- On loopback (the default) `Host` must name this machine, and so must `Origin` where a browser sends one: no
  page of another site reaches the API, not even by rebinding its name to 127.0.0.1.
- Beyond loopback (`--admin-host`) the node wants a token (`INTERLOCK_TOKEN` or `--token-file` of
  `interlock up`, at least 16 characters) and does not start without one. Then everything but `/health/live`
  and `/health/ready` wants `Authorization: Bearer TOKEN`. The node keeps the token in `run/token` of its home
  folder, readable by its user only.
- Bodies are at most 64 KiB.
"""


def errors_page() -> str:
    """Every error: its place in the tree, its HTTP status on the admin API, what it means."""
    found = re.findall(r"─ (\w+) {2,}(\S.*)$", errors.__doc__ or "", re.MULTILINE)
    meanings = {name: re.sub(r"\s*\((HTTP )?\d+\)$", "", words) for name, words in found}
    rows: list[str] = []

    def walk(kind: type[InterlockError], depth: int) -> None:
        status = next((code for above, code in STATUSES if issubclass(kind, above)), 500)
        indent = "&emsp;" * depth
        rows.append(f"| {indent}`{kind.__name__}` | {status} | {meanings.get(kind.__name__, '')} |\n")
        for below in kind.__subclasses__():
            if below.__module__ == errors.__name__:
                walk(below, depth + 1)

    for kind in InterlockError.__subclasses__():
        if kind.__module__ == errors.__name__:
            walk(kind, 0)
    return f"""# Errors

{_NOTE}

What Interlock raises on purpose. The admin API answers with the class's name as `code` and this status; the
command line prints the message and exits with 1; Python code catches `interlock.errors.NAME`, or a class
above it.

| error | status | meaning |
|---|---|---|
{"".join(rows)}"""


def pages() -> dict[str, str]:
    """Every generated page by its file's name."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = open_context(Path(folder))
        node = NodeStatus("local", 1, "", "", 0.0, 0)
        config = NodeConfig(home=ctx.home)
        described = openapi(AdminDeps(ctx, config, lambda: node, lambda: b"", lambda: None))
        ctx.close()
    return {"cli.md": cli_page(), "admin-api.md": admin_api_page(described), "errors.md": errors_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
