"""The command that asks a model, over V2 on the node's data port, as any other client would."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import json_option, model_argument, node_options
from interlock.core.errors import VersionNotFound

if TYPE_CHECKING:
    from interlock.operations.http import Answer

SLACK_S = 5.0
"""How much longer than the request's own time-out the command waits for the answer."""


@click.command(
    epilog="Examples: interlock predict iris --data '[[5.1, 3.5, 1.4, 0.2]]'  |  "
    "interlock predict iris --data rows.csv  |  head -5 rows.csv | interlock predict iris --data - --json"
)
@model_argument
@click.option("--data", required=True, metavar="FILE|JSON|-", help="Rows, records, a V2 request, or CSV.")
@click.option("--version", "number", help="This version, whatever is live.")
@click.option(
    "--timeout",
    "timeout_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.001, 3600),
    help="The request's deadline, in seconds.",
)
@node_options
@json_option
def predict(
    name: str, data: str, number: str | None, timeout_s: float, home: Path, url: str | None, as_json: bool
) -> None:
    """Ask a model and print its answer, one line a row.

    DATA is JSON or a file: rows ([[…], …] or CSV), records ([{…}, …]), values by input ({"x": […]}), or a
    whole V2 request ({"inputs": […]}); - reads standard input. --url may name the data port too.
    """
    from interlock.cli.binary import decode, encode
    from interlock.cli.payload import Metadata, read, request_of

    given = read(data, sys.stdin.buffer.read)
    base = _data_url(home, url)
    path = f"/v2/models/{quote(name, safe='')}" + (f"/versions/{quote(number, safe='')}" if number else "")
    try:
        found = _ask(base, "GET", path)
    except VersionNotFound as error:
        raise Failure(
            error.message,
            f"list the versions with: interlock versions {name}; put one live with: "
            f"interlock release {name} {number or ''} --now".replace("  ", " "),
        ) from None
    metadata = msgspec.json.decode(found.body, type=Metadata)
    body, headers = encode(request_of(given, metadata), metadata)
    headers["x-request-timeout-ms"] = f"{timeout_s * 1000:.0f}"
    found = _ask(base, "POST", f"{path}/infer", body, timeout_s + SLACK_S, headers)
    answer = decode(found.body, found.headers)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    _show(answer)


def _data_url(home: Path, url: str | None) -> str:
    """Where V2 is spoken: the home's node, or what `--url` leads to, be it the data port or the admin API."""
    from interlock.core.errors import NodeUnreachable
    from interlock.operations.control import open_control
    from interlock.operations.discovery import find_node, url_of
    from interlock.operations.http import call

    if url is None:
        node = find_node(home)
        if node is None:
            raise NodeUnreachable(f"no node runs in {home}")
        return node.http_url
    if call(url, "GET", "/v2").status == 200:
        return url
    from urllib.parse import urlsplit

    with open_control(home, url) as control:
        found = control.status().node
    if found is None:
        raise NodeUnreachable(f"{url} is the admin API of a node that does not run")
    port = urlsplit(found.http_url).port
    return url_of(urlsplit(url).hostname or "", port or 8000)


def _ask(
    base: str,
    method: str,
    path: str,
    body: bytes | None = None,
    timeout_s: float = 30.0,
    headers: dict[str, str] | None = None,
) -> "Answer":
    from interlock.core import errors
    from interlock.operations.http import call

    answer = call(base, method, path, body, None, timeout_s, headers)
    if answer.status == 200:
        return answer
    try:
        message = str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.DecodeError, LookupError, TypeError):
        message = f"{base} answered {answer.status}: {answer.body[:200].decode(errors='replace')}"
    if answer.status == 404:
        raise VersionNotFound(message) if "/versions/" in path else errors.ModelNotFound(message)
    if 400 <= answer.status < 500:
        raise errors.InvalidRequest(message)
    if answer.status == 503:
        raise errors.Unavailable(message)
    raise errors.ModelFailed(message)


def _show(answer: dict[str, Any]) -> None:
    outputs = answer.get("outputs", [])
    rows = outputs[0]["shape"][0] if outputs and outputs[0]["shape"] else 1
    cells: list[list[Any]] = []
    for output in outputs:
        data = output.get("data", [])
        by_row = bool(output["shape"]) and output["shape"][0] == rows and rows and len(data) % rows == 0
        width = len(data) // rows if by_row else 0
        if not by_row:
            cells.append([data] + [""] * (rows - 1))
        elif width == 1:
            cells.append(data)
        else:
            cells.append([data[row * width : (row + 1) * width] for row in range(rows)])
    # Before the table: in a pipe, standard output arrives after all that was said.
    show.say(
        f"{show.printable(answer.get('model_name'))} version {show.printable(answer.get('model_version'))}"
    )
    show.table([output["name"] for output in outputs], zip(*cells, strict=True))
