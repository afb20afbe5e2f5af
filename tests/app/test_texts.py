"""Texts and a plain Python model: the elements are `bytes`, in the checks and from every client."""

from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from interlock.operations.context import opened
from interlock.operations.register import register
from tests.app.nodes import RunningNode

pytestmark = [pytest.mark.server, pytest.mark.beside]

SHOUT = """
import numpy as np

class Shout:
    signature = {
        "inputs": {"word": ("BYTES", [-1, 1])},
        "outputs": {"loud": ("BYTES", [-1, 1]), "text": ("BYTES", [-1])},
    }
    def predict(self, inputs):
        loud = [word + b"!" for word in inputs["word"][:, 0]]
        return {
            "loud": np.array(loud, object)[:, None],
            "text": np.array([word.decode(errors="replace") for word in loud], object),
        }
"""
WORDS = np.array([[b"a"], ["räksmörgås".encode()], [b""], [b"z\0"]], object)


def test_a_plain_python_model_sees_bytes(home_with_store: Path, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT)
    with opened(home_with_store) as ctx:
        # Once on rows that the checks make up, once on given ones.
        register(ctx, "shout", tmp_path / "shout.py")
        np.savez(tmp_path / "rows.npz", word=WORDS.astype("S"))
        row = register(ctx, "shout", tmp_path / "shout.py", data=tmp_path / "rows.npz")
        assert row.number == "2" and not row.report.generated
    with RunningNode(home_with_store) as node:
        node.wait_ready()
        assert node.release("shout", "2").state == "done"
        with InferenceServerClient(f"127.0.0.1:{node.node.http_port}") as client:
            for binary in (True, False):
                check_answer(client, binary)


def check_answer(client: InferenceServerClient, binary: bool) -> None:
    words = InferInput("word", [4, 1], "BYTES")
    words.set_data_from_numpy(WORDS, binary_data=binary)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("loud", "text")]
    answer = client.infer("shout", [words], outputs=wanted)
    loud = [item if isinstance(item, bytes) else item.encode() for item in answer.as_numpy("loud").ravel()]
    assert loud == [word + b"!" for word in WORDS[:, 0].tolist()]
    texts = answer.as_numpy("text").tolist()
    assert texts == (loud if binary else [item.decode() for item in loud])
