"""Decides what V2's messages are to a client: inputs to bytes, and the bytes of an answer to outputs.

Tensors travel as binary data both ways. The JSON before them is padded with blanks to 8 bytes, which saves
the server a copy; the place of an answer in memory is chosen so that its first tensor can be read where it
is.
"""

import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

import msgspec
import numpy as np

from interlock.client.inputs import Sent
from interlock.client.prediction import Prediction
from interlock.codec.raw import pack, unpack
from interlock.codec.v2json import parse
from interlock.core.errors import InvalidRequest, NodeUnreachable, OutputMismatch
from interlock.core.model import DATATYPES, Array
from interlock.core.table import MISSING

JSON_LENGTH = b"inference-header-content-length"
REQUEST_ID = b"interlock-request-id"
JSON = (b"content-type", b"application/json")
PIECE_BYTES = 256 * 1024
"""The transport copies what a socket did not take at once: pieces keep that small."""

_MOST_AXES = 64
Headers = list[tuple[bytes, bytes]]
Part = bytes | memoryview


class Body:
    """The parts of a request, for a transport that asks for one after the other. `whole` tells whether the
    last one went out: before that no server can have begun."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.whole = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            for at in range(0, len(part), PIECE_BYTES):
                piece = part[at : at + PIECE_BYTES] if len(part) > PIECE_BYTES else part
                yield cast(bytes, piece)  # h11 joins whatever has the bytes
        self.whole = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Awaited(iter(self))


class _Awaited:
    """For `async for`. No async generator: one that a failed write leaves behind needs a loop to end."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


class Reply:
    """An answer as it comes in. Raises: NodeUnreachable if it is longer than `most_bytes`."""

    def __init__(self, status: int, headers: Headers, most_bytes: int) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self._most_bytes = most_bytes
        json_bytes, length = self.headers.get(JSON_LENGTH, b""), self.headers.get(b"content-length", b"")
        self._start = -int(json_bytes) % 8 if json_bytes.isdigit() and len(json_bytes) < 16 else 0
        size = int(length) if length.isdigit() and len(length) < 16 else 0
        self._check(size)
        self._buffer = bytearray(self._start)

    def take(self, chunk: bytes) -> None:
        self._check(len(self._buffer) - self._start + len(chunk))
        self._buffer += chunk

    @property
    def body(self) -> memoryview:
        return memoryview(self._buffer)[self._start :]

    def _check(self, size: int) -> None:
        if size > self._most_bytes:
            raise NodeUnreachable(
                f"the answer has {size} bytes or more; the limit is {self._most_bytes}: raise "
                f"max_answer_bytes if it is meant to be so large"
            )


class Encoded(msgspec.Struct, frozen=True):
    """An infer request as it goes out: the parts of its body, and the headers that say what they are."""

    parts: Sequence[Part]
    headers: Headers


def encode(inputs: Sequence[Sent], outputs: Sequence[str] | None, client_id: str | None) -> Encoded:
    """The request that sends `inputs` and wants all `outputs`, or those named, as binary data."""
    parts: list[Part] = [b""]
    entries = []
    for sent in inputs:
        try:
            data = pack(sent.name, sent.datatype, sent.array)
        except OutputMismatch as error:
            raise InvalidRequest(error.message.replace("output", "input", 1)) from None
        parts.append(data)
        entries.append(
            {
                "name": sent.name,
                "datatype": sent.datatype,
                "shape": sent.array.shape,
                "parameters": {"binary_data_size": len(data)},
            }
        )
    message: dict[str, Any] = {"inputs": entries}
    if client_id is not None:
        message["id"] = client_id
    if outputs is None:
        message["parameters"] = {"binary_data_output": True}
    else:
        message["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    text = msgspec.json.encode(message)
    parts[0] = text + b" " * (-len(text) % 8)
    length = (JSON_LENGTH, b"%d" % len(parts[0]))
    return Encoded(parts, [length, (b"content-type", b"application/octet-stream")])


def as_written(request: dict[str, Any]) -> Encoded:
    """A request of V2 that somebody wrote (JSON values), as it is, but that outputs for which it wishes
    nothing come as binary data: JSON cannot carry all of them."""
    parameters = request.get("parameters")
    if parameters is None or isinstance(parameters, dict):
        request = {**request, "parameters": {"binary_data_output": True, **(parameters or {})}}
    # Not msgspec, which writes null for NaN and refuses the integers beyond 64 bits.
    return Encoded([json.dumps(request).encode()], [JSON])


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Output]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def decode(reply: Reply) -> Prediction:
    """What an answer with status 200 says. Outputs share memory with the reply where their layout permits.

    Raises: NodeUnreachable if it is no answer of V2.
    """
    body = reply.body
    length = reply.headers.get(JSON_LENGTH)
    try:
        end = len(body) if length is None else int(length)
        if not 0 <= end <= len(body):
            raise ValueError(f"Inference-Header-Content-Length is {end}, the body has {len(body)} bytes")
        answer = _read(body[:end])
        outputs = {}
        for output in answer.outputs:
            size = (output.parameters or {}).get("binary_data_size")
            if size is None:
                outputs[output.name] = _from_json(output)
                continue
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise ValueError(f"binary_data_size {size!r}, {len(body) - end} bytes are left")
            outputs[output.name] = _from_bytes(output, body[end : end + size])
            end += size
    except InvalidRequest as error:
        raise _nonsense(error.message.replace("input '", "output '", 1)) from None
    except (ValueError, TypeError, KeyError, OverflowError, msgspec.MsgspecError) as error:
        raise _nonsense(f"{type(error).__name__}: {error}") from None
    request_id = reply.headers.get(REQUEST_ID)
    return Prediction(
        answer.model_name,
        answer.model_version or "",
        outputs,
        request_id.decode("latin-1") if request_id is not None else None,
        answer.id,
    )


def _read(text: memoryview) -> _Answer:
    try:
        return _decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # NaN and Infinity among JSON numbers
        return msgspec.convert(parse(text), _Answer)


def _count(output: _Output) -> int:
    if len(output.shape) > _MOST_AXES or any(length < 0 for length in output.shape):
        raise ValueError(f"output '{output.name}' has shape {list(output.shape)}")
    return math.prod(output.shape)


def _from_bytes(output: _Output, data: memoryview) -> Array:
    array = unpack(output.name, output.datatype, output.shape, _count(output), data)
    return _strings(array) if output.datatype == "BYTES" else array


def _from_json(output: _Output) -> Array:
    if output.datatype != "BYTES":
        return np.array(output.data, DATATYPES[output.datatype]).reshape(output.shape)
    array = np.empty(_count(output), np.object_)
    array[:] = np.array(output.data, np.object_).ravel()
    return _strings(array.reshape(output.shape))


def _strings(array: Array) -> Array:
    flat = array.reshape(-1)
    for index, element in enumerate(flat.tolist()):
        if element == MISSING:
            flat[index] = None
        elif isinstance(element, bytes):
            try:
                flat[index] = element.decode()
            except UnicodeDecodeError:
                continue
    return array


def _nonsense(why: str) -> NodeUnreachable:
    return NodeUnreachable(f"the answer is none of V2: {why[:300]}")
