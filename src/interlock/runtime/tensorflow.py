"""Owns TensorFlow SavedModel folders: the signature `serving_default` says names, datatypes and shapes."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra, UntrustedArtifact
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.runtime.framework_tensors import held, spec_of
from interlock.runtime.pickles import sha256_of

SERVING = "serving_default"
GRAPH = "saved_model.pb"
_FILES = frozenset({"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operators of a graph that reach files or Python; what restores the variables is not among them."""


class TensorflowModel:
    """One function of a SavedModel; arguments by name."""

    def __init__(self, model: Any, tensorflow: Any, signature: Signature) -> None:
        self._model = model  # the function alone does not keep the variables
        self._call = model.signatures[SERVING]
        self._tensorflow = tensorflow
        self._specs = signature.inputs
        self._dtypes = {name: spec.dtype for name, spec in self._call.structured_input_signature[1].items()}

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: InputMismatch, ShapeMismatch; whatever TensorFlow raises."""
        tensor = self._tensorflow.convert_to_tensor
        given = {
            spec.name: self._tensorflow.cast(held(spec, inputs), self._dtypes[spec.name])
            if spec.datatype == "BF16"
            else tensor(held(spec, inputs), dtype=self._dtypes[spec.name])
            for spec in self._specs
        }
        answers = self._call(**given)
        return {
            name: _array(answer) for name, answer in answers.items() if outputs is None or name in outputs
        }

    def close(self) -> None:
        """Let the model go."""
        del self._call, self._model


class Tensorflow:
    """The runtime `tensorflow`: `entry` is the folder with saved_model.pb ("" for the artifact itself).

    `options["trusted_sha256"]`: the SHA-256 of a saved_model.pb whose graph reads or writes files.
    """

    name = "tensorflow"

    def load(self, folder: Path, version: Version) -> TensorflowModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        model, tensorflow = _open(folder / version.entry, version.options)
        signature = version.signature if version.signature.inputs else _signature(model)
        return TensorflowModel(model, tensorflow, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the folder says of itself. Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        return _signature(_open(folder / version.entry, version.options)[0])

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def tensorflow_package() -> Any:
    """TensorFlow with one thread, its chatter off. Raises: MissingExtra."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, at the import
    try:
        import tensorflow
    except ImportError as error:
        raise MissingExtra(error.name or "tensorflow", "tensorflow") from None
    try:
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        return tensorflow  # it has run already in this process, with the threads it had
    return tensorflow


def _open(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    graph = folder / GRAPH
    if not graph.is_file():
        raise LoadFailed(f"{folder.name} has no {GRAPH}: want a SavedModel folder, as model.export writes it")
    tensorflow = tensorflow_package()
    try:
        if options.get("trusted_sha256") != sha256_of(graph):
            _refuse_files(graph)
        model = tensorflow.saved_model.load(str(folder))
    except (LoadFailed, UntrustedArtifact):
        raise
    except Exception as error:  # TensorFlow's errors, protobuf's and the system's share no root
        raise LoadFailed(
            f"TensorFlow cannot load {folder.name}: {type(error).__name__}: {str(error)[:600]}"
        ) from error
    if SERVING not in model.signatures:
        raise LoadFailed(
            f"{folder.name} has the signatures {sorted(model.signatures)}: want {SERVING!r}, as model.export "
            "and tf.saved_model.save(…, signatures=…) write it"
        )
    return model, tensorflow


def _refuse_files(graph: Path) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel()
    saved.ParseFromString(graph.read_bytes())
    found = {
        node.op
        for meta in saved.meta_graphs
        for nodes in (
            meta.graph_def.node,
            *(function.node_def for function in meta.graph_def.library.function),
        )
        for node in nodes
    } & _FILES
    if found:
        raise UntrustedArtifact(
            f"the graph in {graph.name} has operators that reach files or Python "
            f"({', '.join(sorted(found))}), and nobody vouched for SHA-256 {sha256_of(graph)}: register it "
            "with --trust if you know where it comes from"
        )


def _signature(model: Any) -> Signature:
    call = model.signatures[SERVING]
    inputs = tuple(spec_of(name, value) for name, value in sorted(call.structured_input_signature[1].items()))
    outputs = tuple(spec_of(name, value) for name, value in sorted(call.structured_outputs.items()))
    if not inputs or not outputs:
        raise LoadFailed(f"{SERVING} has {len(inputs)} inputs and {len(outputs)} outputs: want one of each")
    rows = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(inputs, outputs, 0 if rows else None)


def _array(answer: Any) -> Array:
    array: Array = answer.numpy()
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


runtime = Tensorflow()
