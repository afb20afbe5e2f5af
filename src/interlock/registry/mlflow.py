"""Owns the face to the model registry: MLflow's own client and store, imported only when first asked.

Every call goes through a client that was given its URIs, within what `quiet.py` lends and gives back, and
after a short question whether the store answers. Models are never loaded through MLflow.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import InterlockError, ModelNotFound, RegistryError, VersionNotFound
from interlock.core.model import Signature
from interlock.registry import mlmodel, mlrun
from interlock.registry.address import Address
from interlock.registry.mlrun import Facts, SeenRun
from interlock.registry.quiet import quiet as _quiet
from interlock.registry.store import alone_in_database, make_store

EXPERIMENT = "interlock"
_REMEDY = "check MLFLOW_TRACKING_URI and that the store answers"


class RegisteredVersion(msgspec.Struct, frozen=True):
    """A model version as MLflow has it. `created_s` is Unix time; `source` where its files lie."""

    model: str
    number: str
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created_s: float


class Seen(msgspec.Struct, frozen=True):
    """A version and the run that it came from, None where that is gone or there was none."""

    entry: RegisteredVersion
    description: str
    run: SeenRun | None


class Registry:
    """MLflow behind one small face. `tracking_uri` None: a SQLite store and artifacts in the home folder.

    Raises, in every method: RegistryError when the store refuses or cannot be reached.
    """

    def __init__(self, home: Path, tracking_uri: str | None = None) -> None:
        self.home = home
        self.tracking_uri = tracking_uri or f"sqlite:///{home.absolute() / 'mlflow.db'}"
        self.is_default = tracking_uri is None
        self._address = Address(self.tracking_uri)

    @cached_property
    def client(self) -> Any:
        """MLflow's client; importing it takes seconds."""
        with self._translated():
            from mlflow import MlflowClient

            with _quiet(), self._alone():  # quiet anew: the import has set MLflow's own log level
                if self.is_default:
                    make_store(self.home / "mlflow.db")
                client = MlflowClient(self.tracking_uri, self.tracking_uri)
                client.search_registered_models(max_results=1)  # makes a new store's tables, and says so
            return client

    def check_answers(self) -> None:
        """Nothing, if the store can be asked; without importing MLflow, and within `PROBE_S`."""
        why = self._address.why_silent()
        if why is not None:
            raise RegistryError(f"the registry {self._where} does not answer: {why}; {_REMEDY}")

    # Reading

    def resolve(self, model: str, selector: str | None = None) -> RegisteredVersion:
        """A version by number, by "@alias", or the newest.

        Raises: ModelNotFound, VersionNotFound.
        """
        with self._translated(model=model, selector=selector):
            if selector is None:
                found = self._newest(model)
                if found is None:
                    self.client.get_registered_model(model)  # raises for an unknown model
                    raise VersionNotFound(f"model {model!r} has no versions in {self._where}")
                return found
            if selector.startswith("@"):
                return self._record(self.client.get_model_version_by_alias(model, selector[1:]))
            if not re.fullmatch(r"[0-9]{1,18}", selector):
                raise VersionNotFound(f"version {selector!r} of {model!r}: want a number or an @alias")
            return self._record(self.client.get_model_version(model, selector))

    def models(self) -> list[str]:
        """The names of all registered models, sorted."""
        with self._translated():
            return sorted(entry.name for entry in _pages(self.client.search_registered_models))

    def versions(self, model: str) -> list[RegisteredVersion]:
        """All versions of a model, oldest first.

        Raises: ModelNotFound.
        """
        with self._translated(model=model):
            self.client.get_registered_model(model)
            entries = _pages(self.client.search_model_versions, filter_string=f"name={_quoted(model)}")
            # The search leaves aliases out in some stores; the single look-up never does.
            found = [self._record(self.client.get_model_version(model, entry.version)) for entry in entries]
        return sorted(found, key=lambda version: int(version.number))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias to number.

        Raises: ModelNotFound.
        """
        with self._translated(model=model):
            aliases = self.client.get_registered_model(model).aliases
            return {str(alias): str(number) for alias, number in aliases.items()}

    def download(self, model: str, number: str, folder: Path) -> None:
        """Copy a version's files, its MLmodel included, into an existing folder.

        Raises: VersionNotFound.
        """
        with self._translated(model=model, selector=number), _quiet():
            from mlflow.artifacts import download_artifacts

            uri = self.client.get_model_version_download_uri(model, number)
            path = Path(
                download_artifacts(
                    artifact_uri=uri,
                    dst_path=str(folder),
                    tracking_uri=self.tracking_uri,
                    registry_uri=self.tracking_uri,
                )
            )
            if path.resolve() != folder.resolve():
                # A source that is itself a folder of files arrives under its own name.
                for item in path.iterdir():
                    item.rename(folder / item.name)
                path.rmdir()

    def download_described(self, model: str, number: str, folder: Path) -> None:
        """Copy a version's MLmodel file and what describes it beside, but none of the model's own files."""
        with self._translated(model=model, selector=number):
            uri = self.client.get_model_version_download_uri(model, number)
            mlrun.download_described(uri, self.tracking_uri, folder)

    def has_run(self, run_id: str) -> bool:
        """Whether a run is one of this store's."""
        with self._translated():
            return self._run(run_id) is not None

    def look(self, model: str, selector: str | None) -> Seen:
        """All that MLflow shows of one version, whoever registered it.

        Raises: ModelNotFound, VersionNotFound.
        """
        entry = self.resolve(model, selector)
        with self._translated(model=model, selector=entry.number):
            found = self.client.get_model_version(model, entry.number)
            run = self._run(found.run_id) if found.run_id else None
            return Seen(entry, str(found.description or ""), None if run is None else mlrun.seen(run))

    # Writing

    def log_version(
        self,
        model: str,
        files: Path,
        runtime: str,
        entry: str,
        signature: Signature,
        *,
        options: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        facts: Facts | None = None,
    ) -> tuple[str, bool]:
        """Log an artifact folder as a new version of a model: its number, and whether the model is new.

        A plain MLflow client can read it: an MLmodel file with flavor, signature and requirements lies
        beside the files, a run holds `metrics` and the `facts`. On failure nothing is left that the registry
        lists.
        """
        undo: list[Callable[[], object]] = []
        facts = facts or Facts()
        with self._translated(model=model), _quiet():
            try:
                run = mlrun.begin(self.client, model, facts, self._experiment)
                undo.append(lambda: self.client.delete_run(run.info.run_id))
                # In our own experiment, whose files lie where the registry keeps them: those of a training
                # run's may lie in the folder where somebody happened to train.
                # The SQL store looks a logged model without a run up through the process-wide tracking URI;
                # with a run it does not, and nothing global needs setting.
                logged = self.client.create_logged_model(
                    self._experiment(),
                    name=_logged_name(model),
                    source_run_id=run.info.run_id,
                    params=facts.params,
                )
                undo.append(lambda: self.client.delete_logged_model(logged.model_id))
                mlrun.log(self.client, run.info.run_id, logged.model_id, metrics, facts)
                ids = logged.model_id, run.info.run_id
                with mlmodel.packed(files, runtime, entry, signature, options, *ids, facts.files) as folder:
                    self.client.log_model_artifacts(logged.model_id, str(folder))
                self._hide_artifacts(str(logged.artifact_location))
                self.client.finalize_logged_model(logged.model_id, "READY")
                is_new = self._ensure_model(model)
                if is_new:
                    undo.append(lambda: self.client.delete_registered_model(model))
                version = self.client.create_model_version(
                    model,
                    source=logged.artifact_location,
                    run_id=run.info.run_id,
                    model_id=logged.model_id,
                    tags=dict(tags),
                )
                undo.append(lambda: self.client.delete_model_version(model, version.version))
                self.client.set_terminated(run.info.run_id)
                return str(version.version), is_new
            except BaseException:
                _undo(undo)
                raise

    def remove(self, model: str, number: str, *, model_too: bool = False) -> None:
        """Take a version back that could not be completed; `model_too` if it was the model's first."""
        with self._translated(model=model, selector=number):
            version = self.client.get_model_version(model, number)
            self.client.delete_model_version(model, number)
            if model_too:
                self.client.delete_registered_model(model)
            if version.model_id:
                self.client.delete_logged_model(version.model_id)
            if version.run_id:
                self.client.delete_run(version.run_id)

    def set_alias(self, model: str, alias: str, number: str) -> None:
        """Let an alias name a version. Raises: ModelNotFound, VersionNotFound."""
        with self._translated(model=model, selector=number):
            self.client.set_registered_model_alias(model, alias, number)

    def set_tag(self, model: str, number: str, key: str, value: str) -> None:
        """Set a tag of a version. Raises: VersionNotFound."""
        with self._translated(model=model, selector=number):
            self.client.set_model_version_tag(model, number, key, value)

    # Helpers

    @property
    def _where(self) -> str:
        return self._address.shown

    def _alone(self) -> AbstractContextManager[None]:
        return alone_in_database(self.tracking_uri) if self._address.is_database else nullcontext()

    def _run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self._keeps_artifacts:
            folder = self.home.absolute() / "mlartifacts"
            folder.mkdir(mode=0o700, exist_ok=True)
            location = f"file://{folder}"
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))
        except Exception:
            found = self.client.get_experiment_by_name(EXPERIMENT)  # another process was faster
            if found is None:
                raise
            return str(found.experiment_id)

    @property
    def _keeps_artifacts(self) -> bool:
        """A server says where artifacts go; a bare SQL store would put them in the current folder."""
        return not self._address.is_http

    def _hide_artifacts(self, location: str) -> None:
        """Take the rights of other users off what MLflow has written below the home folder."""
        root = self.home.absolute() / "mlartifacts"
        folder = Path(location.removeprefix("file://"))
        if not folder.is_relative_to(root):
            return  # a store of the user's own
        above = [path for path in folder.parents if path.is_relative_to(root)]
        for path in (*above, folder, *folder.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)

    def _ensure_model(self, model: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return False
            raise
        return True

    def _newest(self, model: str) -> RegisteredVersion | None:
        entries = list(_pages(self.client.search_model_versions, filter_string=f"name={_quoted(model)}"))
        if not entries:
            return None
        newest = max(entries, key=lambda entry: int(entry.version))
        return self._record(self.client.get_model_version(model, newest.version))

    def _record(self, entry: Any) -> RegisteredVersion:
        return RegisteredVersion(
            model=str(entry.name),
            number=str(entry.version),
            source=str(entry.source),
            aliases=tuple(sorted(entry.aliases or ())),
            tags={str(key): str(value) for key, value in (entry.tags or {}).items()},
            created_s=entry.creation_timestamp / 1e3,
        )

    @contextmanager
    def _translated(self, model: str | None = None, selector: str | None = None) -> Iterator[None]:
        with _quiet():
            try:
                self.check_answers()
                yield
            except InterlockError:
                raise
            except Exception as error:  # MLflow, SQLAlchemy, requests and cloud stores share no root
                code = getattr(error, "error_code", "")
                missing = code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") and model is not None
                if missing and not self._has(model):
                    raise ModelNotFound(f"no model {model!r} in the registry {self._where}") from None
                if missing and selector is not None:
                    raise VersionNotFound(
                        f"no version {selector!r} of model {model!r} in the registry {self._where}"
                    ) from None
                remedy = (
                    "check that the disk has room and the home folder belongs to this user"
                    if self.is_default
                    else _REMEDY
                )
                told = self._address.hide(str(error))
                raise RegistryError(
                    f"the registry {self._where}: {type(error).__name__}: {told[:500]}; {remedy}"
                ) from (error if told == str(error) else None)  # a traceback would show what is hidden

    def _has(self, model: str | None) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(model)
        except MlflowException as error:
            return bool(error.error_code != "RESOURCE_DOES_NOT_EXIST")
        return True


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=200, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _quoted(name: str) -> str:
    quote = '"' if "'" in name else "'"
    if quote in name:
        raise RegistryError(f"model name {name!r} holds both kinds of quotes: MLflow cannot search for it")
    return f"{quote}{name}{quote}"


def _logged_name(model: str) -> str:
    """Logged models may not hold some characters that registered models may."""
    return re.sub(r"[/:.%\"']", "-", model)


def _undo(steps: list[Callable[[], object]]) -> None:
    for step in reversed(steps):
        try:
            step()
        except Exception as error:
            logging.getLogger("interlock").warning(
                # Its words may hold the password of the store.
                "could not take back a step of a registration: %s",
                type(error).__name__,
            )
