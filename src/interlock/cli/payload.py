"""Decides how data that a person has at hand becomes the inputs of a V2 request: JSON, records, rows, CSV."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import InputMismatch, MalformedMessage


class Spec(msgspec.Struct, frozen=True):
    """One input or output as V2 metadata has it; -1 where any length is allowed."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Metadata(msgspec.Struct, frozen=True):
    """What V2 says of a model; the inputs that it wants."""

    name: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...] = ()


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


def request_of(data: Any, metadata: Metadata) -> dict[str, Any]:
    """The V2 request (JSON values) that asks a model about `data`.

    `data`: a V2 request; {input: values}; a list of records; a list of rows, or one row; rows of CSV.
    Raises: InputMismatch if it does not fit the model's inputs.
    >>> iris = Metadata("iris", (Spec("x", "FP32", (-1, 2)),))
    >>> request_of([[1, 2], [3, 4]], iris)["inputs"][0]["shape"]
    [2, 2]
    """
    if isinstance(data, dict) and isinstance(data.get("inputs"), list):
        return data
    columns = _columns(data, metadata)
    return {"inputs": [_tensor(spec, columns[spec.name]) for spec in metadata.inputs if spec.name in columns]}


def _columns(data: Any, metadata: Metadata) -> dict[str, Any]:
    names = [spec.name for spec in metadata.inputs]
    if isinstance(data, dict):
        return _known(data, names)
    if not isinstance(data, list) or not data:
        raise InputMismatch(f"the data is {str(data)[:100]}: want rows, records, or values by input {names}")
    if isinstance(data[0], dict):
        keys = list(data[0])
        for row, record in enumerate(data):
            if not isinstance(record, dict) or list(record) != keys:
                raise InputMismatch(f"record {row} has other names than the first one, which has {keys}")
        if len(names) == 1 and names != keys:
            return {names[0]: [[record[key] for key in keys] for record in data]}
        return _known({key: [record[key] for record in data] for key in keys}, names)
    if all(isinstance(row, list) and row and isinstance(row[0], str) for row in data):
        data, header = _without_header(data, metadata)
        if header is not None and len(names) > 1:
            return _known({key: [row[at] for row in data] for at, key in enumerate(header)}, names)
    if len(names) == 1:
        return {names[0]: data}
    if all(isinstance(row, list) and len(row) == len(names) for row in data):
        return {name: [row[at] for row in data] for at, name in enumerate(names)}
    raise InputMismatch(f"the model has {len(names)} inputs: give {{input: values}} for {names}")


def _known(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    unknown = [key for key in given if key not in names]
    if unknown:
        raise InputMismatch(f"no input {unknown[0]!r}; the model's inputs: {', '.join(names)}")
    return given


def _without_header(rows: list[list[str]], metadata: Metadata) -> tuple[list[list[str]], list[str] | None]:
    """CSV without its first line, if that is a header: it names inputs, or is words where numbers belong."""
    for at, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise InputMismatch(f"line {at + 1} has {len(row)} values, the first one {len(rows[0])}")
    first = rows[0]
    names = {spec.name for spec in metadata.inputs}
    numeric = all(spec.datatype != "BYTES" for spec in metadata.inputs)
    if set(first) <= names or (numeric and not any(_is_number(cell) for cell in first)):
        return rows[1:], first
    return rows, None


def _tensor(spec: Spec, values: Any) -> dict[str, Any]:
    shape = _shape(values)
    rank = len(spec.shape)
    if len(shape) == rank - 1:
        if shape and spec.shape[-1] == 1:
            shape = [*shape, 1]  # a plain list for a column
        elif spec.shape[0] in (-1, 1):
            shape = [1, *shape]  # one row, given alone
    elif len(shape) == rank + 1 and shape[-1] == 1:
        shape = shape[:-1]  # a table of one column for a plain list
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": shape,
        "data": [_value(spec, value) for value in _flat(values)],
    }


def _shape(values: Any) -> list[int]:
    if not isinstance(values, list):
        return []
    return [len(values), *(_shape(values[0]) if values else [])]


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [leaf for value in values for leaf in _flat(value)]


def _value(spec: Spec, value: Any) -> Any:
    if not isinstance(value, str) or spec.datatype == "BYTES":
        return str(value) if spec.datatype == "BYTES" else value
    try:
        if spec.datatype == "BOOL":
            return {"true": True, "1": True, "false": False, "0": False}[value.strip().lower()]
        return float(value) if spec.datatype.startswith(("FP", "BF")) else int(value)
    except (ValueError, KeyError):
        raise InputMismatch(
            f"input {spec.name!r} wants {spec.datatype}, and {value[:50]!r} is none"
        ) from None


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
