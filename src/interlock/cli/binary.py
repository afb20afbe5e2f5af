"""Decides which tensors of a request travel as bytes behind the JSON, and reads an answer with such tensors.

FP16 and BF16 have no JSON form in V2; texts (BYTES) need not be UTF-8, which JSON wants.
"""

import json
from typing import Any

from interlock.cli.payload import Metadata
from interlock.core.errors import InputMismatch, MalformedMessage

BINARY = frozenset({"FP16", "BF16", "BYTES"})
LENGTH = "inference-header-content-length"


def encode(request: dict[str, Any], metadata: Metadata) -> tuple[bytes, dict[str, str]]:
    """The body of a V2 request (JSON values), and the headers that it needs.

    Tensors of the datatypes in `BINARY` go as bytes, and come as bytes unless the request says otherwise.
    Raises: InputMismatch for values that are none of their datatype.
    """
    parts: list[bytes] = []
    inputs = [_packed(tensor, parts) for tensor in request["inputs"]]
    message = {**request, "inputs": inputs}
    datatypes = {spec.name: spec.datatype for spec in metadata.outputs}
    if BINARY & set(datatypes.values()) or "outputs" in request:
        wanted = request.get("outputs") or [{"name": name} for name in datatypes]
        message["outputs"] = [_requested(output, datatypes) for output in wanted]
    text = json.dumps(message).encode()
    if not parts:
        return text, {}
    headers = {LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    return b"".join([text, *parts]), headers


def decode(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """An answer with all values in `data`, as if all had been JSON; texts that are not UTF-8 are escaped.

    Raises: MalformedMessage if it is no answer of V2.
    """
    length = int(headers.get(LENGTH, len(body)))
    try:
        answer: dict[str, Any] = json.loads(body[:length])
    except ValueError as error:
        raise MalformedMessage(f"the answer is not JSON: {error}") from None
    at = length
    for output in answer.get("outputs", []):
        size = output.get("parameters", {}).pop("binary_data_size", None)
        if size is not None:
            output["data"] = _unpacked(output, memoryview(body)[at : at + size])
            at += size
        if not output.get("parameters", True):
            del output["parameters"]
    return answer


def _packed(tensor: Any, parts: list[bytes]) -> Any:
    if not isinstance(tensor, dict) or tensor.get("datatype") not in BINARY or "data" not in tensor:
        return tensor
    import numpy as np

    from interlock.codec.raw import pack
    from interlock.core.model import DATATYPES

    name, datatype = str(tensor.get("name")), str(tensor["datatype"])
    flat = _leaves(tensor["data"])
    array = np.empty(len(flat), DATATYPES[datatype])
    try:
        array[:] = (
            [value if isinstance(value, str) else str(value) for value in flat]
            if datatype == "BYTES"
            else flat
        )
    except (TypeError, ValueError) as error:
        raise InputMismatch(f"input {name!r} wants {datatype}: {error}") from None
    data = bytes(pack(name, datatype, array))
    parts.append(data)
    sent = {key: value for key, value in tensor.items() if key != "data"}
    return {**sent, "parameters": {**tensor.get("parameters", {}), "binary_data_size": len(data)}}


def _leaves(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [leaf for value in values for leaf in _leaves(value)]


def _requested(output: Any, datatypes: dict[str, str]) -> Any:
    if not isinstance(output, dict) or datatypes.get(str(output.get("name"))) not in BINARY:
        return output
    return {**output, "parameters": {"binary_data": True, **output.get("parameters", {})}}


def _unpacked(output: dict[str, Any], data: memoryview) -> list[Any]:
    import math

    from interlock.codec.raw import unpack

    shape = tuple(output["shape"])
    array = unpack(output["name"], output["datatype"], shape, math.prod(shape), data)
    values: list[Any] = array.ravel().tolist()
    return [
        value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values
    ]
