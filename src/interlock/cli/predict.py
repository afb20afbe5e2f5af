"""The command that asks a model, over V2 on the node's data port, as any other client would."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import json_option, model_argument, node_options
from interlock.core.errors import VersionNotFound

if TYPE_CHECKING:
    import ssl

    from interlock.client.prediction import Prediction
    from interlock.client.views import Metadata
    from interlock.core.model import Array

LOOK_S = 30.0
"""How long a node may take to say what the model takes."""


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
    whole V2 request ({"inputs": [{…}]}), which goes as it is; - reads standard input. The header of CSV and
    the keys of records name columns, in any order; null, and an empty cell where numbers are, is a missing
    value. --url may name the data port too.
    """
    from interlock.cli.payload import data_of, read
    from interlock.client.blocking import Client

    given = read(data, sys.stdin.buffer.read)
    base = _data_url(home, url)
    # Who asks by hand wants the first answer, whatever it is.
    with Client(base, timeout_s=timeout_s, retries=0, ssl_context=_authorities(base)) as client:
        try:
            metadata = client.metadata(name, number, timeout_s=LOOK_S)
        except VersionNotFound as error:
            raise Failure(
                error.message,
                f"list the versions with: interlock versions {name}; put one live with: "
                f"interlock release {name} {number or ''} --now".replace("  ", " "),
            ) from None
        answer = _written(client.predict(name, data_of(given, metadata), version=number), metadata)
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
    with open_control(home, url) as control:
        found = control.status().node
    if found is None:
        raise NodeUnreachable(f"{url} is the admin API of a node that does not run")
    port = urlsplit(found.http_url).port
    return url_of(urlsplit(url).hostname or "", port or 8000)


def _authorities(url: str) -> "ssl.SSLContext | None":
    """Those that this machine trusts, as for the admin API."""
    if urlsplit(url).scheme != "https":
        return None
    import ssl

    return ssl.create_default_context()


def _written(answer: "Prediction", metadata: "Metadata") -> dict[str, Any]:
    """The answer as V2 writes it in JSON, had it a form for all datatypes."""
    halves = {spec.name for spec in metadata.outputs if spec.datatype == "BF16"}
    outputs = [_output(name, array, name in halves) for name, array in answer.outputs.items()]
    written: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    written["outputs"] = outputs
    return written if answer.client_id is None else {**written, "id": answer.client_id}


def _output(name: str, array: "Array", is_half: bool) -> dict[str, Any]:
    from interlock.core.model import datatype_of

    datatype = datatype_of(array)
    values: list[Any] = array.ravel().tolist()
    if datatype == "BYTES":  # texts that are no UTF-8 are escaped
        values = [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in values]
    # bfloat16 is float32 in memory.
    datatype = "BF16" if is_half and datatype == "FP32" else datatype
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": values}


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
