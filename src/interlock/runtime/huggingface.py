"""Owns Hugging Face folders: texts go in, an embedding or a class comes out, nothing is fetched."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import InputMismatch, LoadFailed, MissingExtra, ShapeMismatch, UntrustedArtifact
from interlock.core.model import Array, Signature, Tensors, TensorSpec, Version
from interlock.runtime.answers import texts
from interlock.runtime.huggingface_files import Plan, plan
from interlock.runtime.torch import torch_package

TEXT = "text"
EMBEDDING = "embedding"
LABEL = "label"
LOGITS = "logits"

Tokens = dict[str, Array]
"""`input_ids`, `attention_mask` and `token_type_ids`, each int64 [rows, tokens]."""


class HuggingfaceModel:
    """`text` [rows] in; `embedding` [rows, width], or `logits` [rows, classes] and `label` [rows], out."""

    def __init__(self, tokenizer: Any, run: Callable[[Tokens], Array], asked: Plan) -> None:
        self._tokenizer = tokenizer
        self._run = run
        self._asked = asked
        self._labels = np.array(asked.labels, object)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: InputMismatch, ShapeMismatch, DatatypeMismatch; whatever the model raises."""
        array = inputs.get(TEXT)
        if array is None:
            raise InputMismatch(f"input {TEXT!r} is missing; got {sorted(inputs)}")
        if array.ndim != 1:
            raise ShapeMismatch(f"input {TEXT!r}: got {list(array.shape)}, the signature wants [-1]")
        tokens = self._tokens(texts(TEXT, array))
        answer = self._run(tokens)
        if self._asked.classifies:
            answers = {LOGITS: answer}
            if len(self._labels):
                answers[LABEL] = self._labels[answer.argmax(axis=1)]
        else:
            pooled = (
                answer if answer.ndim == 2 else _pooled(answer, tokens["attention_mask"], self._asked.pooling)
            )
            if self._asked.normalised:
                pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
            answers = {EMBEDDING: pooled.astype(np.float32, copy=False)}
        return {name: value for name, value in answers.items() if outputs is None or name in outputs}

    def close(self) -> None:
        """Let the model go."""
        del self._run, self._tokenizer

    def _tokens(self, lines: list[str]) -> Tokens:
        if self._asked.lower:
            lines = [line.lower() for line in lines]
        encoded = self._tokenizer.encode_batch(lines)
        return {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }


class Huggingface:
    """The runtime `huggingface`: the artifact is the folder.

    `options["trusted_code"]`: somebody vouched for the Python that the folder brings.
    """

    name = "huggingface"

    def load(self, folder: Path, version: Version) -> HuggingfaceModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        asked = plan(folder)
        if asked.code and not asked.graph and not version.options.get("trusted_code"):
            raise UntrustedArtifact(
                f"{folder.name} brings Python code of its own (auto_map in its configuration), and nobody "
                "vouched for it: convert it to ONNX, or register it with --trust if you know where it comes "
                "from"
            )
        tokenizer = _tokenizer(folder, asked)
        if asked.graph:
            return HuggingfaceModel(tokenizer, _onnx_run(folder / asked.graph, asked), asked)
        return HuggingfaceModel(tokenizer, _torch_run(folder, asked, version.options), asked)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """From two texts of its own. Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        model = self.load(folder, version)
        try:
            answers = model.predict({TEXT: np.array(["a", "b c"], object)})
        except Exception as error:
            raise LoadFailed(
                f"{folder.name} cannot answer two words: {type(error).__name__}: {str(error)[:500]}"
            ) from error
        outputs = tuple(
            TensorSpec(name, "BYTES" if name == LABEL else "FP32", (-1, *value.shape[1:]))
            for name, value in answers.items()
        )
        return Signature((TensorSpec(TEXT, "BYTES", (-1,)),), outputs, 0)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def _tokenizer(folder: Path, asked: Plan) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread; read at each call
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra(error.name or "tokenizers", "huggingface") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the binding raises plain Exception
        raise LoadFailed(f"tokenizers cannot load tokenizer.json: {str(error)[:500]}") from error
    tokenizer.enable_truncation(asked.max_tokens, direction=asked.truncation_side)
    # To the longest of the batch, not to a fixed length: that would only add work.
    tokenizer.enable_padding(direction=asked.padding_side, pad_id=asked.pad_id, pad_token=asked.pad_token)
    return tokenizer


def _onnx_run(path: Path, asked: Plan) -> Callable[[Tokens], Array]:
    from interlock.runtime.onnx import open_session

    session = open_session(path)
    taken = [node.name for node in session.get_inputs()]
    given = [node.name for node in session.get_outputs()]
    wanted = (
        (LOGITS,) if asked.classifies else ("sentence_embedding", "last_hidden_state", "token_embeddings")
    )
    output = next((name for name in wanted if name in given), None)
    unknown = sorted(set(taken) - {"input_ids", "attention_mask", "token_type_ids"})
    if output is None or unknown:
        raise LoadFailed(
            f"{path.name} takes {taken} and gives {given}: want input_ids, attention_mask and token_type_ids "
            f"at most, and one of {list(wanted)}"
        )
    return lambda tokens: np.asarray(
        session.run([output], {name: tokens[name] for name in taken})[0], np.float32
    )


def _torch_run(folder: Path, asked: Plan, options: dict[str, Any]) -> Callable[[Tokens], Array]:
    # Read when the packages are imported; this process is the version's own.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    torch = torch_package()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "huggingface") from None
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.AutoModelForSequenceClassification if asked.classifies else transformers.AutoModel
    try:
        model = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=bool(options.get("trusted_code")),
            dtype=torch.float32,
        ).eval()
    except Exception as error:  # transformers, safetensors and the system share no root
        raise LoadFailed(
            f"transformers cannot load {folder.name}: {type(error).__name__}: {str(error)[:600]}"
        ) from error
    taken = [
        name
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in inspect.signature(model.forward).parameters
    ]

    def run(tokens: Tokens) -> Array:
        with torch.inference_mode():
            answer = model(**{name: torch.from_numpy(tokens[name]) for name in taken})
            found = answer.logits if asked.classifies else answer.last_hidden_state
            array: Array = found.numpy()
            return array

    return run


def _pooled(states: Array, mask: Array, pooling: str) -> Array:
    """One vector a text of [rows, tokens, width] states, padding left out."""
    kept = mask[:, :, None].astype(np.float32)
    pooled: Array
    if pooling == "cls":
        pooled = states[np.arange(len(states)), mask.argmax(axis=1)]  # padding may stand on the left
    elif pooling == "max":
        pooled = np.where(kept > 0, states, -np.inf).max(axis=1)
    else:
        pooled = (states * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1e-9)
    return pooled


runtime = Huggingface()
