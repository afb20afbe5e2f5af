"""Decides what the app file (`app.toml` in the home folder) says, from its text: settings of the node and of
models, the policy by which a model's versions are released, and which alias says which version that is.

```toml
schema = 1

[node]
http_port = 9000
workers = 2

[models.iris]
default_timeout_s = 2.0

[models.iris.release]
budget = 20

[models.iris.follow]
alias = "champion"
```
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from interlock.core.errors import ConfigError, SchemaTooNew
from interlock.core.model import ModelSettings, check_name
from interlock.core.policy import Policy
from interlock.core.settings import NodeConfig, check_config

T = TypeVar("T")

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: tuple[Migration, ...] = ()
"""`MIGRATIONS[n]` turns the tables of schema n + 1 into those of schema n + 2."""

_NOT_IN_FILE = {"home", "token"}
_NODE_KEYS = tuple(key for key in NodeConfig.__struct_fields__ if key not in _NOT_IN_FILE)
_MODEL_KEYS = ModelSettings.__struct_fields__
_RELEASE = "release"
"""The table within a model's that holds the policy of its releases."""
_FOLLOW = "follow"


class Follow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That a model's versions are released when an alias of the registry moves to them.

    How they are released, by `strategy`, says the model's policy. The registry is asked every `every_s`.
    """

    alias: str
    strategy: Literal["canary", "shadow", "blue-green", "now"] = "canary"
    every_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.alias or self.alias.startswith("@") or len(self.alias) > 255:
            raise ConfigError(f"alias {self.alias[:80]!r} to follow: want its name without @")
        if not 0.2 <= self.every_s <= 86400:
            raise ConfigError(f"every_s {self.every_s:g} of an alias to follow: want 0.2 to 86400")


class AppFile(msgspec.Struct, frozen=True):
    """What the file sets, and nothing that it does not: defaults are filled in where the parts are used."""

    node: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}
    releases: dict[str, dict[str, Any]] = {}
    follows: dict[str, Follow] = {}


def app_file(home: Path) -> Path:
    """Where the app file of a home folder lies; it need not exist."""
    return home / "app.toml"


def parse_app(text: str, where: str = "app.toml", migrations: Sequence[Migration] = MIGRATIONS) -> AppFile:
    """The app file from its text, of this schema or an older one. An empty text sets nothing.

    Raises: SchemaTooNew; ConfigError for what is no TOML, an unknown key, or a value that must not be.
    >>> parse_app("schema = 1\\n[models.iris]\\nqueue_rows = 10").models
    {'iris': {'queue_rows': 10}}
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    tables = _migrated(tables, where, migrations)
    _only(tables, ("schema", "node", "models"), where)
    node, models = (_table(tables, name, where) for name in ("node", "models"))
    _only(node, _NODE_KEYS, f"{where} [node]")
    settings: dict[str, dict[str, Any]] = {}
    releases: dict[str, dict[str, Any]] = {}
    follows: dict[str, Follow] = {}
    for name in models:
        check_name(name)
        table = _table(models, name, f"{where} [models]")
        _only(table, (*_MODEL_KEYS, _RELEASE, _FOLLOW), f"{where} [models.{name}]")
        settings[name] = {key: value for key, value in table.items() if key in _MODEL_KEYS}
        releases[name] = _table(table, _RELEASE, f"{where} [models.{name}]")
        one = AppFile(models={name: settings[name]}, releases={name: releases[name]})
        model_settings(one, name, ModelSettings(), where)
        release_policy(one, name, {}, where)
        if _FOLLOW in table:
            place = f"{where} [models.{name}]"
            follows[name] = _checked(_table(table, _FOLLOW, place), Follow, f"{place[:-1]}.{_FOLLOW}]")
    found = AppFile(node, settings, releases, follows)
    node_config(Path(), found, {}, where=where)
    return found


def node_config(
    home: Path, app: AppFile, flags: Mapping[str, Any], cores: int = 1, where: str = "app.toml"
) -> NodeConfig:
    """The settings of a node: `flags` (those that were given) win over the file, and that over the defaults.

    `workers` may be "auto", which is one for each of `cores`.
    Raises: ConfigError with the offending value and what it may be.
    """
    merged = {**app.node, **flags, "home": home}
    if merged.get("workers") == "auto":
        merged["workers"] = max(cores, 1)
    return check_config(_convert(merged, NodeConfig, where))


def model_settings(app: AppFile, name: str, base: ModelSettings, where: str = "app.toml") -> ModelSettings:
    """How requests of a model are treated: what the file says of it, and `base` (of the ledger) for the rest.

    Raises: ConfigError.
    """
    stated = app.models.get(name)
    if not stated:
        return base
    settings = _convert({**msgspec.structs.asdict(base), **stated}, ModelSettings, f"{where} [models.{name}]")
    for key in ("default_timeout_s", "max_timeout_s", "queue_rows"):
        if getattr(settings, key) <= 0:
            raise ConfigError(f"{where} [models.{name}]: {key} = {getattr(settings, key)}: want more than 0")
    if settings.max_wait_s < 0 or settings.priority not in (0, 1):
        raise ConfigError(f"{where} [models.{name}]: want max_wait_s >= 0 and priority 0 or 1")
    if settings.max_batch_rows is not None and settings.max_batch_rows < 1:
        raise ConfigError(
            f"{where} [models.{name}]: max_batch_rows = {settings.max_batch_rows}: want 1 or more"
        )
    return settings


def release_policy(app: AppFile, name: str, given: Mapping[str, Any], where: str = "app.toml") -> Policy:
    """How a version of a model is tried: what was `given` with the release wins over the file, and that over
    the defaults.

    Raises: ConfigError.
    >>> file = AppFile(releases={"iris": {"budget": 20, "margin": 0.01}})
    >>> release_policy(file, "iris", {"margin": 0.02}).margin
    0.02
    """
    stated, place = app.releases.get(name, {}), f"{where} [models.{name}.{_RELEASE}]"
    _only(stated, Policy.__struct_fields__, place)
    _only(given, Policy.__struct_fields__, "the policy of a release")
    _checked(stated, Policy, place)
    return _convert({**stated, **given}, Policy, "the policy of a release")


def _checked(stated: dict[str, Any], kind: type[T], place: str) -> T:
    """A struct with checks of its own, which do not know the place."""
    try:
        return _convert(stated, kind, place)
    except ConfigError as error:
        told = error.message
        raise ConfigError(told if told.startswith(place) else f"{place}: {told}") from None


def _migrated(tables: dict[str, Any], where: str, migrations: Sequence[Migration]) -> dict[str, Any]:
    newest = len(migrations) + 1
    schema = tables.get("schema", newest)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ConfigError(f"{where}: schema = {schema!r}: want a number from 1 to {newest}")
    if schema > newest:
        raise SchemaTooNew(
            f"{where} has schema {schema}, this Interlock reads up to {newest}: upgrade it first"
        )
    for migrate in migrations[schema - 1 :]:
        tables = migrate(tables)
    return tables


def _table(tables: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {name} = {found!r}: want a table")
    return found


def _only(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        secret = "; the token is given with --token-file or INTERLOCK_TOKEN" if "token" in unknown else ""
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}{secret}")


def _convert(values: dict[str, Any], kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(values, kind, dec_hook=lambda to, value: to(value))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
