"""Decides what a Hugging Face folder asks for: its task, pooling, longest text. Imports no framework."""

import json
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import LoadFailed

WEIGHTS = "model.safetensors"
GRAPHS = ("model.onnx", "onnx/model.onnx")
_DEFAULT_TOKENS = 512
_NO_LIMIT = 1_000_000  # tokenizers without a limit have 1e30 there
_PADS_BEFORE_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
LEFT_OUT = (
    "*.bin", "*.h5", "*.msgpack", "*.ot", "*.pt", "*.pth", "*.pkl", "*.md", "*.py[co]", "__pycache__",
    ".git*", "openvino", "coreml",
)  # fmt: skip
"""Patterns of the files that are not read here: the same weights in other formats, and caches."""


class Plan(msgspec.Struct, frozen=True):
    """What to do with a text. `max_tokens`: longer ones are cut. `labels` by class number; none: embeddings.

    `pooling` is "mean", "cls" or "max" over tokens; `normalised`: to length 1. `graph`: the ONNX file, "" for
    torch weights. `code`: the folder brings Python (`auto_map`).
    """

    max_tokens: int
    lower: bool
    pad_id: int
    pad_token: str
    padding_side: str
    truncation_side: str
    labels: tuple[str, ...]
    classifies: bool
    pooling: str
    normalised: bool
    graph: str
    code: bool


def plan(folder: Path) -> Plan:
    """Read the folder's configuration files.

    Raises: LoadFailed for a task, a pooling or weights that the runtime does not do, or for a broken file.
    """
    try:
        return _plan(folder)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadFailed(f"a configuration file of {folder.name} is broken: {error!r}") from error


def _plan(folder: Path) -> Plan:
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    sentences, own = _json(folder / "sentence_bert_config.json"), _json(folder / "tokenizer.json")
    graph = next((name for name in GRAPHS if (folder / name).is_file()), "")
    if not graph and not any(folder.glob("model*.safetensors")):
        raise LoadFailed(
            f"{folder.name} has no {WEIGHTS} and no model.onnx: save it with model.save_pretrained(folder), "
            "which writes safetensors; pickled weights (pytorch_model.bin) are not read"
        )
    architecture = (config.get("architectures") or ["none"])[0]
    classifies = architecture.endswith("ForSequenceClassification")
    modules = [module["type"].rpartition(".")[2] for module in _json(folder / "modules.json") or ()]
    is_base = architecture.endswith("Model") and "LMHead" not in architecture
    if not (classifies or modules or is_base):
        raise LoadFailed(
            f"{folder.name} is a {architecture}: want one for sequence classification or a sentence "
            "embedding (a sentence-transformers folder, or a base model); wrap others in a Python class"
        )
    if set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise LoadFailed(
            f"{folder.name} has the modules {modules}: want Transformer, Pooling and Normalize; export it to "
            "ONNX, or wrap it in a Python class"
        )
    pad_token = (
        _word(tokenizer.get("pad_token")) or _word((own.get("padding") or {}).get("pad_token")) or "[PAD]"
    )
    known = {token["content"]: token["id"] for token in own.get("added_tokens", ())}
    return Plan(
        max_tokens=_max_tokens(config, tokenizer, sentences, own),
        lower=bool(sentences.get("do_lower_case", False)),
        pad_id=int(known.get(pad_token, config.get("pad_token_id") or 0)),
        pad_token=pad_token,
        padding_side=tokenizer.get("padding_side", "right"),
        truncation_side=tokenizer.get("truncation_side", "right"),
        labels=_labels(config) if classifies else (),
        classifies=classifies,
        pooling=_pooling(folder) if not classifies else "",
        normalised="Normalize" in modules,
        graph=graph,
        code="auto_map" in config or "auto_map" in tokenizer,
    )


def _max_tokens(
    config: dict[str, Any], tokenizer: dict[str, Any], sentences: dict[str, Any], own: dict[str, Any]
) -> int:
    """The least of what the files say; tokenizer.json's cut counts where sentence-transformers says none."""
    said = [
        sentences.get("max_seq_length") or (own.get("truncation") or {}).get("max_length"),
        tokenizer.get("model_max_length"),
    ]
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in _PADS_BEFORE_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    limits = [int(limit) for limit in (*said, positions) if limit and 0 < limit < _NO_LIMIT]
    return min(limits, default=_DEFAULT_TOKENS)


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """By class number; none where there is no one label: regressions, and several labels at once."""
    labels = config.get("id2label") or {
        str(index): f"LABEL_{index}" for index in range(config.get("num_labels", 2))
    }
    if config.get("problem_type") in ("regression", "multi_label_classification") or len(labels) < 2:
        return ()
    return tuple(str(labels[str(index)]) for index in range(len(labels)))


def _pooling(folder: Path) -> str:
    config = _json(folder / "1_Pooling" / "config.json")
    modes = [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    known = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    found = [known.get(mode, mode) for mode in modes] or [config.get("pooling_mode", "mean")]
    if len(found) != 1 or found[0] not in known.values():
        raise LoadFailed(f"{folder.name}/1_Pooling asks for {found}: want one of {sorted(known.values())}")
    return str(found[0])


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _word(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token or "")
