"""What reading and writing one infer message costs, against msgspec's untyped decoder in the same run.

    python -m benchmarks.bench_v2_codec

Microseconds, the best of seven rounds. Caveat: one process, warm caches, no transport.
"""

import timeit
from collections.abc import Callable

import msgspec
import numpy as np

from interlock.codec.v2infer import Codec
from interlock.core.model import Signature, TensorSpec

IRIS = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    outputs=(TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
)
IMAGE = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 3, 224, 224)),), outputs=(TensorSpec("y", "FP32", (-1, 1000)),)
)
ONE_ROW = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'


def cost_us(call: Callable[[], object], number: int = 5000) -> float:
    """The least mean of seven rounds."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def main() -> None:
    iris, image = Codec("iris", "1", IRIS), Codec("image", "1", IMAGE)
    untyped = msgspec.json.Decoder()
    rows32 = msgspec.json.encode(
        {"inputs": [{"name": "x", "shape": [32, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2] * 32}]}
    )
    outputs = {"label": np.array([1]), "probabilities": np.array([[0.1, 0.2, 0.7]], np.float32)}
    answer = iris.decode(ONE_ROW, None)[2]
    size = 4 * 3 * 224 * 224
    text = (
        b'{"inputs":[{"name":"x","shape":[1,3,224,224],"datatype":"FP32","parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % size
    )
    padded = text + b" " * (-len(text) % 8)
    aligned, unaligned = padded + bytes(size), b" " + padded + bytes(size)
    binary = image.decode(aligned, len(padded))[2]
    scores = {"y": np.zeros((1, 1000), np.float32)}
    for name, took in (
        ("untyped msgspec decode of one row of iris", cost_us(lambda: untyped.decode(ONE_ROW))),
        ("decode one row of iris", cost_us(lambda: iris.decode(ONE_ROW, None))),
        ("decode 32 rows of iris", cost_us(lambda: iris.decode(rows32, None))),
        ("encode one row of iris", cost_us(lambda: answer.encode(outputs, None))),
        (
            "decode a 600 KB image, aligned",
            cost_us(lambda: image.decode(aligned, len(padded))),
        ),
        (
            "decode a 600 KB image, unaligned",
            cost_us(lambda: image.decode(unaligned, len(padded) + 1), 300),
        ),
        ("encode 1,000 scores, binary", cost_us(lambda: binary.encode(scores, None))),
    ):
        print(f"{name:45s}{took:9.2f} us")


if __name__ == "__main__":
    main()
