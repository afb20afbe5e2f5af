"""Decides what data that a person has at hand is: a V2 request, records, rows, or CSV. What becomes of it is
the client's to say."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock.client.message import as_written
from interlock.client.views import Metadata
from interlock.core.errors import InputMismatch, MalformedMessage


def read(data: str, stdin: Callable[[], bytes]) -> Any:
    """What `--data` names: JSON itself, a file of JSON or CSV, or "-" for standard input.

    CSV comes back as a list of rows of strings.
    Raises: MalformedMessage if it is neither; OSError if the file cannot be read.
    """
    if data.lstrip()[:1] in ("{", "["):
        return _json(data, "--data")
    if data == "-":
        text = _text(stdin(), "standard input")
    else:
        path = Path(data).expanduser()
        if not path.is_file():
            raise MalformedMessage(f"--data {data[:200]!r} is neither JSON nor a file that exists")
        text = _text(path.read_bytes(), str(path))
    if text.lstrip()[:1] in ("{", "["):
        return _json(text, data)
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise MalformedMessage(f"{data}: no rows in it")
    return rows


def data_of(data: Any, metadata: Metadata) -> Any:
    """What `Client.predict` takes, for data as a person wrote it.

    `data`: a V2 request; {input: values}; a list of records; a list of rows, or one row; rows of CSV, whose
    header, if there is one, is told by its words.
    Raises: InputMismatch if that cannot be data of this model.
    >>> from interlock.client.views import Tensor
    >>> iris = Metadata("iris", (Tensor("x", "FP32", (-1, 2)),))
    >>> data_of([["width", "length"], ["1", "2"]], iris)
    [['1', '2']]
    """
    columns, inputs = metadata.columns, [spec.name for spec in metadata.inputs]
    if isinstance(data, dict):
        return as_written(data) if _is_request(data) else data
    if not isinstance(data, list) or not data:
        raise InputMismatch(f"the data is {str(data)[:100]}: want rows, records, or values by input {inputs}")
    if isinstance(data[0], dict):
        keys = list(data[0])
        for row, record in enumerate(data):
            if not isinstance(record, dict) or record.keys() != data[0].keys():
                raise InputMismatch(f"record {row} has other names than the first one, which has {keys}")
        return data
    if all(isinstance(row, list) and row and isinstance(row[0], str) for row in data):
        data, header = _without_header(data, metadata)
        if header is not None and (columns or len(inputs) > 1):
            if len(set(header)) < len(header):
                raise InputMismatch(f"a column is there twice in the header {', '.join(header)}")
            return {key: [row[at] for row in data] for at, key in enumerate(header)}
    is_by_place = len(inputs) > 1 and not columns
    if is_by_place and all(isinstance(row, list) and len(row) == len(inputs) for row in data):
        return {name: [row[at] for row in data] for at, name in enumerate(inputs)}
    return data


def _is_request(data: dict[str, Any]) -> bool:
    """A V2 request, and not values for an input that is called "inputs"."""
    inputs = data.get("inputs")
    return isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)


def _without_header(rows: list[list[str]], metadata: Metadata) -> tuple[list[list[str]], list[str] | None]:
    """CSV without its first line, if that is a header: it names inputs, or is words where numbers belong."""
    for at, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise InputMismatch(f"line {at + 1} has {len(row)} values, the first one {len(rows[0])}")
    first = rows[0]
    names = {spec.name for spec in metadata.inputs} | {spec.name for spec in metadata.columns}
    numeric = all(spec.datatype != "BYTES" for spec in metadata.inputs)
    if set(first) <= names or (numeric and not any(_is_number(cell) for cell in first)):
        return rows[1:], first
    return rows, None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"{where} is not UTF-8 text: {error}") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedMessage(f"{where[:200]} is not JSON: {error}") from None
