"""Decides what an infer message means to one version: bytes to validated tensors, and outputs to bytes.

One `Codec` per version holds all that depends on its signature alone, so that a request pays for its values
only. One row of iris: decode 1.7 us, encode 1.4 us (benchmarks/bench_v2_codec.py).
"""

import math

import msgspec
import numpy as np

from interlock.codec.raw import ITEM_BYTES, unpack
from interlock.codec.v2answer import Answer, Output, answer_head
from interlock.codec.v2input import (
    NO_SHARED_MEMORY,
    binary_size,
    check_end,
    check_spec,
    from_json,
    strings,
    table,
)
from interlock.codec.v2json import (
    JSON_DATATYPES,
    Message,
    Parameters,
    RequestedOutput,
    fast_decoder,
    read,
    row_decoder,
)
from interlock.core.errors import (
    InputMismatch,
    InterlockError,
    MalformedMessage,
    ShapeMismatch,
    UnknownOutput,
    Unsupported,
)
from interlock.core.model import DATATYPES, Inputs, Signature, Tensors, TensorSpec

_MOST_ANSWERS = 64
_NO_PARAMETERS = Parameters()


Decoded = tuple[Inputs, int, Answer, str | None, Parameters | None]
"""An infer request as the version sees it: inputs, rows, what encodes the answer that the client asked for,
the client's id, and parameters. A tuple, for it costs 0.1 us less than a struct."""


class Codec:
    """The infer messages of one version of one model; not thread-safe."""

    def __init__(self, model: str, number: str, signature: Signature) -> None:
        self._label = f"model '{model}' version {number}"
        self._signature = signature
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._decoder, specs = fast_decoder(signature)
        # None for the dtype: strings take the slower way to become bytes.
        self._plans = {
            made: (spec, DATATYPES[spec.datatype] if spec.datatype != "BYTES" else None, self._has_rows(spec))
            for made, spec in specs.items()
        }
        self._head = answer_head(model, number)
        self._number = number
        self._answers: dict[tuple[tuple[str, bool], ...] | bool, Answer] = {}
        self._all_json: Answer | None = None
        self._row_decoder = row_decoder(signature)
        first = signature.inputs[0] if signature.inputs else None
        self._row_name = first.name if first is not None else ""

    def decode(self, body: bytes | memoryview, header_length: int | None) -> Decoded:
        """Read one request; `header_length` is the length of the JSON before binary tensors, None if all of
        the body is JSON, 0 if the body is the only input's raw tensor.

        Arrays of binary inputs may share memory with `body`.
        Raises: InvalidRequest's children; Unsupported.
        """
        if header_length is None:
            if self._row_decoder is not None:
                # The commonest request, whose values stay a list: a batch makes one array of all of its
                # lists, and 1.0 us a request is saved (0.5 of them in here).
                try:
                    row = self._row_decoder.decode(body)
                    answer = self._all_json or self._answer(False)
                    return {self._row_name: row.inputs[0].data}, 1, answer, row.id, None
                except _DOUBTS:
                    pass  # the second look says what is wrong, or that nothing is
            try:
                message = self._decoder.decode(body)
                inputs, rows = self._tensors(message, body, len(body))
            except _DOUBTS:
                message, inputs, rows = self._explain(body, memoryview(b""), has_header=False)
        elif header_length == 0:
            return self._raw(body)
        else:
            if not 0 < header_length <= len(body):
                raise MalformedMessage(
                    f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"
                )
            view = memoryview(body)
            try:
                message = self._decoder.decode(view[:header_length])
                inputs, rows = self._tensors(message, body, header_length)
            except _DOUBTS:
                message, inputs, rows = self._explain(
                    view[:header_length], view[header_length:], has_header=True
                )
        parameters = message.parameters
        if parameters is None and message.outputs is None:
            answer = self._all_json or self._answer(False)
        else:
            answer = self._choose(parameters or _NO_PARAMETERS, message.outputs)
        return inputs, rows, answer, message.id, parameters

    def _tensors(self, message: Message, body: bytes | memoryview, at: int) -> tuple[Tensors, int]:
        """The quick way: whatever is unusual raises, and is then taken apart by `_explain`."""
        tensors: Tensors = {}
        rows = 0
        for one in message.inputs:
            spec, dtype, has_rows = self._plans[type(one)]
            shape = one.shape
            parameters = one.parameters
            size = None if parameters is None else parameters.binary_data_size
            if size is None:
                if parameters is not None and parameters.shared_memory_region is not None:
                    raise _Doubt
                if dtype is None:
                    array = strings(spec, shape, one.data)
                else:
                    # One row of flat values in one step: a reshape costs 0.25 us.
                    array = np.array([one.data] if len(shape) == 2 and shape[0] == 1 else one.data, dtype)
                    if array.shape != shape:
                        array = np.array(one.data, dtype)
                        if array.shape != shape:
                            if array.ndim != 1:
                                raise _Doubt
                            array = array.reshape(shape)
            else:
                if one.data is not msgspec.UNSET or not 0 <= size <= len(body) - at:
                    raise _Doubt
                end = at + size
                array = unpack(spec.name, spec.datatype, shape, math.prod(shape), memoryview(body)[at:end])
                at = end
            tensors[spec.name] = array
            if has_rows and shape[0] != rows:
                if rows:
                    raise _Doubt
                rows = shape[0]
        if len(tensors) != len(self._specs) or len(message.inputs) != len(tensors) or at != len(body):
            raise _Doubt
        return tensors, rows or 1

    def _explain(
        self, text: bytes | memoryview, binary: memoryview, has_header: bool
    ) -> tuple[Message, Tensors, int]:
        """The slow way, step by step: the same tensors, or the reason why there are none."""
        message = read(text)
        if self._signature.columns:
            return message, *table(message, binary, has_header, self._signature)
        at = 0
        tensors: Tensors = {}
        rows: tuple[str, int] | None = None
        for one in message.inputs:
            spec = self._specs.get(one.name)
            if spec is None:
                raise InputMismatch(f"input '{one.name}' is unknown; {self._label} wants {self._wants()}")
            if one.name in tensors:
                raise InputMismatch(f"input '{one.name}' is there twice; send it once")
            check_spec(one, spec, self._signature.batch_axis)
            size = binary_size(one, len(binary) - at, has_header)
            if size is None:
                tensors[spec.name] = from_json(one, spec)
            else:
                count = math.prod(one.shape)
                tensors[spec.name] = unpack(
                    spec.name, spec.datatype, one.shape, count, binary[at : at + size]
                )
                at += size
            if self._has_rows(spec):
                if rows is not None and rows[1] != one.shape[0]:
                    raise ShapeMismatch(
                        f"input '{one.name}' has {one.shape[0]} rows, input '{rows[0]}' has {rows[1]};"
                        f" want the same"
                    )
                rows = (one.name, one.shape[0])
        missing = [f"'{name}'" for name in self._specs if name not in tensors]
        if missing:
            raise InputMismatch(f"input {', '.join(missing)} is missing; {self._label} wants {self._wants()}")
        check_end(at, binary)
        return message, tensors, rows[1] if rows else 1

    def _raw(self, body: bytes | memoryview) -> Decoded:
        """A request without JSON: the body is the tensor, and its length tells the one unknown axis."""
        if len(self._specs) != 1:
            raise InputMismatch(
                f"a raw request (Inference-Header-Content-Length: 0) needs a model with one input;"
                f" {self._label} wants {self._wants()}"
            )
        spec = self._signature.inputs[0]
        shape = list(spec.shape)
        unknown = [axis for axis, size in enumerate(shape) if size < 0]
        data = memoryview(body)
        if spec.datatype == "BYTES":
            # One element, without a length of its own.
            shape = [1 if size < 0 else size for size in shape]
            data = memoryview(len(body).to_bytes(4, "little") + body)
        elif unknown:
            if len(unknown) > 1 and self._has_rows(spec):
                shape[unknown.pop(0)] = 1
            if len(unknown) > 1:
                raise ShapeMismatch(
                    f"input '{spec.name}': the length of a raw request cannot tell {len(unknown)} axes of"
                    f" shape {list(spec.shape)}; send JSON with the shape"
                )
            rest = ITEM_BYTES[spec.datatype] * math.prod(size for size in shape if size >= 0)
            if not rest or len(body) % rest or not body:
                raise ShapeMismatch(
                    f"input '{spec.name}': {len(body)} bytes are no multiple of {rest}, which one step of"
                    f" shape {list(spec.shape)} of {spec.datatype} takes"
                )
            shape[unknown[0]] = len(body) // rest
        array = unpack(spec.name, spec.datatype, tuple(shape), math.prod(shape), data)
        rows = shape[0] if self._has_rows(spec) else 1
        answer = self._answers.get(()) or self._answer(())
        return {spec.name: array}, rows, answer, None, None

    def _choose(self, parameters: Parameters, outputs: list[RequestedOutput] | None) -> Answer:
        if parameters.sequence_id:
            raise Unsupported(
                f"parameter sequence_id = {parameters.sequence_id!r}: {self._label} keeps no state between"
                f" requests"
            )
        everything = bool(parameters.binary_data_output)
        if not outputs:
            return self._answers.get(everything) or self._answer(everything)
        wanted: list[tuple[str, bool]] = []
        for output in outputs:
            is_binary = everything
            if output.parameters is not None:
                if output.parameters.classification:
                    raise Unsupported(
                        f"output '{output.name}': classification is not offered; ask for the tensor itself"
                    )
                if output.parameters.shared_memory_region is not None:
                    raise Unsupported(f"output '{output.name}': {NO_SHARED_MEMORY}")
                if output.parameters.binary_data is not None:
                    is_binary = output.parameters.binary_data
            wanted.append((output.name, is_binary))
        key = tuple(wanted)
        return self._answers.get(key) or self._answer(key)

    def _answer(self, key: tuple[tuple[str, bool], ...] | bool) -> Answer:
        """Make and keep the encoder of one choice of outputs; `()` is that of a raw request."""
        if key is True or key is False:
            wanted = tuple((name, key) for name in self._outputs)
        elif key:
            wanted = key
        else:
            wanted = tuple(
                (name, spec.datatype not in JSON_DATATYPES) for name, spec in self._outputs.items()
            )
        names = [name for name, _ in wanted]
        for name, is_binary in wanted:
            spec = self._outputs.get(name)
            if spec is None:
                known = ", ".join(f"'{name}'" for name in self._outputs)
                raise UnknownOutput(f"output '{name}' is unknown; {self._label} has {known}")
            if names.count(name) > 1:
                raise UnknownOutput(f"output '{name}' is asked for twice; ask for it once")
            if not is_binary and spec.datatype not in JSON_DATATYPES:
                raise UnknownOutput(
                    f"output '{name}' is {spec.datatype}, which JSON cannot carry; ask for it as binary data"
                    f" (parameters.binary_data_output = true)"
                )
        answer = Answer(
            self._head,
            self._number,
            [Output(self._outputs[name], is_binary) for name, is_binary in wanted],
            # The same for every order and for all of them, so that such requests can share a batch.
            None if len(names) == len(self._outputs) else tuple(n for n in self._outputs if n in names),
        )
        if len(self._answers) >= _MOST_ANSWERS:
            self._answers.clear()
        self._answers[key] = answer
        if key is False:
            self._all_json = answer
        return answer

    def _has_rows(self, spec: TensorSpec) -> bool:
        return self._signature.batch_axis == 0 and bool(spec.shape) and spec.shape[0] < 0

    def _wants(self) -> str:
        return ", ".join(
            f"'{spec.name}' {spec.datatype} {list(spec.shape)}" for spec in self._signature.inputs
        )


class _Doubt(InterlockError):
    """The quick way met something unusual."""


_DOUBTS = (_Doubt, msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError)
"""What msgspec and numpy raise when a message does not fit the signature's types."""
