"""Decides how a version's files look to MLflow: writes the MLmodel folder of a new one, reads any other's.

Written: flavor `onnx`, `sklearn` or none for plain Python, with MLflow's own writers' layout, and beside it
the flavor `interlock`, which names runtime, entry and options. Read: that one, or one of MLflow's that a
runtime reads.
"""

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError, InterlockError, UnknownFormat
from interlock.core.model import DATATYPES, Signature, TensorSpec, datatype_of

FOLDER = "interlock"
"""The folder of a model's files that holds what is recorded of it, as JSON."""

METADATA_FILES = frozenset(
    {
        FOLDER,
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
        "registered_model_meta",
        "metadata",
    }
)
"""What MLflow lays beside a model's own files; only the latter go into the artifact cache."""

_REQUIREMENTS = {
    "onnx": ("onnx", "onnxruntime"),
    "sklearn": ("scikit-learn", "skops"),
    "python": (),
    "torch": ("torch",),
    "keras": ("keras", "torch"),
    "tensorflow": ("tensorflow-cpu",),
    "huggingface": ("tokenizers", "transformers", "torch"),
    "xgboost": ("xgboost-cpu",),
    "lightgbm": ("lightgbm",),
    "catboost": ("catboost",),
}


class Source(msgspec.Struct, frozen=True):
    """What an MLmodel file says: which runtime loads which file, and what it declares of its columns.

    `input_datatype` is "FP64" for columns of doubles, None
    if they are mixed or unsaid. `ours`: the flavor `interlock` was found.
    """

    runtime: str
    entry: str
    options: dict[str, Any]
    input_datatype: str | None
    ours: bool


class Declared(msgspec.Struct, frozen=True):
    """What the MLmodel file and its neighbours say of a model, for people to read: the datatypes of MLflow's
    that no tensor has stand under MLflow's names. `size_bytes` is None where MLflow did not write it."""

    flavors: tuple[str, ...]
    signature: Signature | None
    requirements: tuple[str, ...] = ()
    python: str | None = None
    size_bytes: int | None = None


@contextmanager
def packed(
    files: Path,
    runtime: str,
    entry: str,
    signature: Signature,
    options: Mapping[str, Any],
    model_id: str,
    run_id: str,
    recorded: Mapping[str, bytes],
) -> Iterator[Path]:
    """A temporary folder with `files`, what MLflow wants beside them, and `recorded` in FOLDER.

    Raises: ConfigError if the model has a file or folder of that name.
    """
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="interlock-log-") as name:
        folder = Path(name) / "model"
        shutil.copytree(files, folder)
        for path in folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        if recorded:
            if (folder / FOLDER).exists():
                raise ConfigError(
                    f"the model has a file or folder {FOLDER!r}, which is Interlock's: rename it"
                )
            (folder / FOLDER).mkdir(mode=0o700)
            for item, content in recorded.items():
                (folder / FOLDER / item).write_bytes(content)
        described = Model(run_id=run_id, model_id=model_id, signature=_to_mlflow(signature))
        python = platform.python_version()
        environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
        if runtime == "onnx":
            described.add_flavor(
                "onnx",
                onnx_version=_version_of("onnx"),
                data=entry,
                providers=["CPUExecutionProvider"],
                onnx_session_options=None,
                code=None,
            )
            described.add_flavor(
                "python_function",
                loader_module="mlflow.onnx",
                data=entry,
                env=environment,
                python_version=python,
            )
        elif runtime == "sklearn":
            described.add_flavor(
                "sklearn",
                pickled_model=entry,
                serialization_format="skops",
                sklearn_version=_version_of("scikit-learn"),
                skops_trusted_types=list(options.get("all_types", ())),
                code=None,
            )
            described.add_flavor(
                "python_function",
                loader_module="mlflow.sklearn",
                model_path=entry,
                predict_fn="predict",
                env=environment,
                python_version=python,
            )
        described.add_flavor("interlock", runtime=runtime, entry=entry, options=json.dumps(dict(options)))
        described.save(str(folder / "MLmodel"))
        _write_environment(folder, _REQUIREMENTS[runtime])
        yield folder


def read(folder: Path) -> Source:
    """What to load from a downloaded MLflow folder.

    Raises: UnknownFormat for a flavor that no runtime reads, or a file that is no MLmodel.
    """
    from mlflow.models import Model

    try:
        described = Model.load(str(folder))
        flavors = described.flavors or {}
        datatype = _declared_datatype(described.signature)
        if "interlock" in flavors:
            ours = flavors["interlock"]
            options = json.loads(ours["options"])
            return Source(str(ours["runtime"]), _inside(folder, str(ours["entry"])), options, datatype, True)
        if "onnx" in flavors:
            return Source("onnx", _inside(folder, str(flavors["onnx"]["data"])), {}, datatype, False)
        boosted = _boosted(folder, flavors, datatype)
        if boosted is not None:
            return boosted
        if "sklearn" in flavors:
            flavor = flavors["sklearn"]
            return Source("sklearn", _inside(folder, str(flavor["pickled_model"])), {}, datatype, False)
        heavy = _heavy(folder, flavors)
        if heavy is not None:
            return Source(heavy[0], _inside(folder, heavy[1]), {}, datatype, False)
    except InterlockError:
        raise
    except Exception as error:  # whatever a malformed file makes MLflow or YAML raise
        raise UnknownFormat(
            f"{folder.name}/MLmodel cannot be read: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    raise UnknownFormat(
        f"the model has the flavors {sorted(flavors)}: want onnx, sklearn, xgboost, lightgbm, catboost, "
        "pytorch, keras or tensorflow, "
        "or convert it to ONNX and register that"
    )


def _boosted(folder: Path, flavors: Mapping[str, Any], datatype: str | None) -> Source | None:
    """xgboost, lightgbm and catboost; LightGBM's scikit-learn classes are stored as scikit-learn's."""
    if "xgboost" in flavors:
        return Source("xgboost", _inside(folder, str(flavors["xgboost"]["data"])), {}, datatype, False)
    if "lightgbm" in flavors:
        entry = _inside(folder, str(flavors["lightgbm"]["data"]))
        is_booster = str(flavors["lightgbm"]["model_class"]).endswith(".Booster")
        return Source("lightgbm" if is_booster else "sklearn", entry, {}, datatype, False)
    if "catboost" in flavors:
        flavor = flavors["catboost"]
        if flavor.get("save_format", "cbm") != "cbm":
            raise UnknownFormat(f"a CatBoost model in the format {flavor['save_format']}: want cbm")
        options = {"kind": str(flavor["model_type"])}
        return Source("catboost", _inside(folder, str(flavor["data"])), options, datatype, False)
    return None


def _heavy(folder: Path, flavors: Mapping[str, Any]) -> tuple[str, str] | None:
    """Runtime and entry of what MLflow's writers for PyTorch, Keras and TensorFlow lay down."""
    if "pytorch" in flavors:
        data = str(flavors["pytorch"]["model_data"])
        program = f"{data}/model.pt2"
        return "torch", program if (folder / program).is_file() else f"{data}/model.pth"
    flavor = flavors.get("keras") or flavors.get("tensorflow")
    if flavor is None:
        return None
    if "saved_model_dir" in flavor:
        return "tensorflow", str(flavor["saved_model_dir"])
    data = f"{flavor['data']}/model"
    return (
        ("tensorflow", data) if (folder / data / "saved_model.pb").is_file() else ("keras", f"{data}.keras")
    )


def declared(folder: Path) -> Declared:
    """What a folder with an MLmodel file declares, whatever its flavors.

    Raises: UnknownFormat for a file that is no MLmodel.
    """
    from mlflow.models import Model

    try:
        described = Model.load(str(folder))
        flavors = described.flavors or {}
        signature = None if described.signature is None else _from_mlflow(described.signature)
    except Exception as error:  # whatever a malformed file makes MLflow or YAML raise
        raise UnknownFormat(
            f"{folder.name}/MLmodel cannot be read: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    lines = folder / "requirements.txt"
    text = lines.read_text(errors="replace") if lines.is_file() else ""
    python = next((str(f["python_version"]) for f in flavors.values() if "python_version" in f), None)
    size_bytes = described.model_size_bytes
    return Declared(
        tuple(sorted(flavors)),
        signature,
        tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")),
        python,
        None if size_bytes is None else int(size_bytes),
    )


def strip(folder: Path) -> None:
    """Remove what MLflow laid beside the model's own files, so that equal models have equal digests."""
    for name in METADATA_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _inside(folder: Path, entry: str) -> str:
    path = folder / entry.partition(":")[0]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnknownFormat(f"MLmodel names {entry!r}, which is outside of its own folder")
    return entry


def _declared_datatype(signature: Any) -> str | None:
    """FP32 or FP64 if all declared inputs are that, else None."""
    if signature is None or signature.inputs is None:
        return None
    names = {"float32": "FP32", "float": "FP32", "float64": "FP64", "double": "FP64"}
    kinds = {
        names.get(str(column.get("tensor-spec", {}).get("dtype") or column.get("type")))
        for column in signature.inputs.to_dict()
    }
    return kinds.pop() if len(kinds) == 1 else None


def _to_mlflow(signature: Signature) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types import TensorSpec as MlflowSpec

    def schema(specs: tuple[TensorSpec, ...]) -> Any:
        return Schema([MlflowSpec(DATATYPES[spec.datatype], spec.shape, spec.name) for spec in specs])

    if not signature.columns:
        return ModelSignature(schema(signature.inputs), schema(signature.outputs))
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    whole = signature.inputs[0].datatype
    types = {name: COLUMN_TYPE_OF[datatypes.get(name, whole)] for name in signature.columns}
    columns: list[Any] = [ColSpec(kind, name) for name, kind in types.items()]
    return ModelSignature(Schema(columns), schema(signature.outputs))


def _from_mlflow(signature: Any) -> Signature:
    def specs(schema: Any) -> tuple[TensorSpec, ...]:
        found = []
        for number, entry in enumerate(schema.inputs if schema is not None else ()):
            name = entry.name if entry.name is not None else str(number)
            if hasattr(entry, "shape"):
                found.append(TensorSpec(name, _datatype(entry.type), tuple(int(n) for n in entry.shape)))
            else:
                kind = getattr(entry.type, "name", str(entry.type))
                found.append(TensorSpec(name, DATATYPE_OF.get(kind, kind), (-1, 1)))
        return tuple(found)

    inputs = specs(signature.inputs)
    is_table = signature.inputs is not None and not signature.inputs.is_tensor_spec()
    columns = tuple(spec.name for spec in inputs) if is_table else ()
    return Signature(inputs, specs(signature.outputs), columns=columns)


def _datatype(dtype: Any) -> str:
    try:
        return datatype_of(np.empty(0, dtype))
    except (ConfigError, TypeError):
        return str(dtype)


DATATYPE_OF = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
}

# MLflow refuses a DataFrame of doubles where it reads "float", and DataFrames hold doubles; its flavors cast
# what they get to the model's own type. The same holds for integers, which are longs there.
COLUMN_TYPE_OF = {
    **dict.fromkeys(("FP16", "BF16", "FP32", "FP64", "UINT64"), "double"),
    **dict.fromkeys(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"), "long"),
    "BOOL": "boolean",
    "BYTES": "string",
}


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write_environment(folder: Path, packages: tuple[str, ...]) -> None:
    python = platform.python_version()
    pinned = ["mlflow"]
    for package in packages:
        installed = _version_of(package)
        pinned.append(f"{package}=={installed}" if installed else package)
    (folder / "requirements.txt").write_text("\n".join(pinned) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {python}\nbuild_dependencies:\n- pip\ndependencies:\n- -r requirements.txt\n"
    )
    (folder / "conda.yaml").write_text(
        f"name: mlflow-env\nchannels:\n- conda-forge\ndependencies:\n- python={python}\n- pip\n- pip:\n"
        + "".join(f"  - {line}\n" for line in pinned)
    )
