"""Holds the runtime `huggingface`: what a folder asks for, and texts that become classes and embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from interlock.core.errors import DatatypeMismatch, LoadFailed, ShapeMismatch, UntrustedArtifact
from interlock.operations.files import copy
from interlock.runtime import huggingface_files
from interlock.runtime.check import check
from interlock.runtime.huggingface import Huggingface
from tests.runtime import models

TEXTS = np.array([b"a spam b", "räksmörgås".encode(), b"", b"spam " * 100], object)


def folder_of(path: Path, **files: Any) -> Path:
    """Configuration files (a slash in a name as two underscores) and an ONNX graph that is empty."""
    path.mkdir(exist_ok=True)
    (path / "model.onnx").touch()
    for name, content in files.items():
        file = path / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return path


BERT = {
    "architectures": ["BertModel"],
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
}
MODULES = [
    {"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")
]


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({}, 512),
        ({"tokenizer_config": {"model_max_length": 128}}, 128),
        ({"tokenizer_config": {"model_max_length": int(1e30)}}, 512),
        ({"tokenizer": {"truncation": {"max_length": 64}}}, 64),
        (
            {
                "tokenizer": {"truncation": {"max_length": 64}},
                "sentence_bert_config": {"max_seq_length": 256},
            },
            256,
        ),
        (
            {"config": {**BERT, "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}},
            512,
        ),
        ({"config": {"architectures": ["T5Model"]}}, 512),
    ],
)
def test_texts_are_cut_where_the_files_say(files: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    assert huggingface_files.plan(folder_of(tmp_path, **{"config": BERT, **files})).max_tokens == tokens


def test_pooling_is_what_sentence_transformers_says(tmp_path: Path) -> None:
    found = huggingface_files.plan(folder_of(tmp_path, config=BERT))
    assert (found.pooling, found.normalised, found.classifies) == ("mean", False, False)
    pooling = {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "word_embedding_dimension": 4,
    }
    found = huggingface_files.plan(folder_of(tmp_path, modules=MODULES, **{"1_Pooling__config": pooling}))
    assert (found.pooling, found.normalised) == ("cls", True)
    pooling["pooling_mode_mean_tokens"] = True
    with pytest.raises(LoadFailed, match=r"asks for \['cls', 'mean'\]"):
        huggingface_files.plan(folder_of(tmp_path, **{"1_Pooling__config": pooling}))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config": {"architectures": ["GPT2LMHeadModel"]}}, "is a GPT2LMHeadModel: want"),
        (
            {"config": {"architectures": ["BertForTokenClassification"]}},
            "is a BertForTokenClassification: want",
        ),
        ({"config": BERT, "modules": [*MODULES, {"type": "sentence_transformers.models.Dense"}]}, "'Dense'"),
        ({"config": []}, "configuration file"),
    ],
)
def test_what_is_not_done_is_said(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=said):
        huggingface_files.plan(folder_of(tmp_path, **files))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config=BERT)
    (folder / "model.onnx").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match=r"no model\.safetensors and no model\.onnx.*are not read"):
        huggingface_files.plan(folder)


def test_only_what_is_read_is_copied(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", config=BERT)
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "model.safetensors"):
        (source / name).touch()
    (tmp_path / "copy").mkdir()
    copy(source, tmp_path / "copy", huggingface_files.LEFT_OUT)
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "model.onnx",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_a_classifier_answers_its_labels(tmp_path: Path) -> None:
    version = models.MODELS["a Hugging Face classifier"](tmp_path)
    loaded = Huggingface().load(tmp_path, version)
    answer = loaded.predict({"text": TEXTS})
    assert answer["logits"].shape == (4, 2) and set(answer["label"]) <= {"ham", "spam"}
    assert answer["label"].tolist() == [("ham", "spam")[row] for row in answer["logits"].argmax(axis=1)]
    alone = np.concatenate([loaded.predict({"text": TEXTS[row : row + 1]})["logits"] for row in range(4)])
    np.testing.assert_allclose(answer["logits"], alone, atol=1e-5)
    assert list(loaded.predict({"text": TEXTS}, ("label",))) == ["label"]
    with pytest.raises(DatatypeMismatch, match="not UTF-8"):
        loaded.predict({"text": np.array([b"\xff"], object)})
    with pytest.raises(ShapeMismatch, match=r"got \[4, 1\]"):
        loaded.predict({"text": TEXTS[:, None]})
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path), model_max_length=16)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    lines = [text.decode() for text in TEXTS]
    encoded = tokenizer(lines, padding=True, truncation=True, max_length=16, return_tensors="pt")
    np.testing.assert_allclose(answer["logits"], model(**encoded).logits.detach().numpy(), atol=1e-6)


@pytest.mark.slow
def test_code_in_the_folder_needs_trust(tmp_path: Path) -> None:
    version = models.MODELS["a Hugging Face classifier"](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    with pytest.raises(UntrustedArtifact, match="auto_map"):
        check(tmp_path, version)
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_an_onnx_graph_needs_no_torch_weights(tmp_path: Path) -> None:
    """The states are the token's number and the mask: their mean over tokens is known."""
    models.MODELS["a Hugging Face classifier"](tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**BERT, "max_position_embeddings": 8}))
    kind = TensorProto.INT64
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
    nodes = [
        helper.make_node("Unsqueeze", ["input_ids", "axes"], ["ids"]),
        helper.make_node("Unsqueeze", ["attention_mask", "axes"], ["mask"]),
        helper.make_node("Concat", ["ids", "mask"], ["both"], axis=2),
        helper.make_node("Cast", ["both"], ["last_hidden_state"], to=TensorProto.FLOAT),
    ]
    inputs = [models.value(name, kind, ["N", "T"]) for name in ("input_ids", "attention_mask")]
    outputs = [models.value("last_hidden_state", TensorProto.FLOAT, ["N", "T", 2])]
    (tmp_path / "model.onnx").write_bytes(models.onnx_model(nodes, inputs, outputs, [axes]))
    report = check(tmp_path, models.version("huggingface", ""))
    assert report.failures == ()
    loaded = Huggingface().load(tmp_path, models.version("huggingface", ""))
    answer = loaded.predict({"text": np.array([b"a spam", b"b"], object)})["embedding"]
    # [CLS] 2, a 4, spam 6, [SEP] 3; [CLS] 2, b 5, [SEP] 3
    np.testing.assert_allclose(answer, [[15 / 4, 1], [10 / 3, 1]], rtol=1e-6)
