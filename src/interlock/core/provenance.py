"""Provenance: where a version comes from, and how good it was on its reference rows at registration."""

from typing import Any

import msgspec


class Code(msgspec.Struct, frozen=True):
    """The revision of a repository. `dirty`: tracked files differ from `commit` (None: git did not say);
    `branch` is None on a detached head; `remote` is a URL without credentials."""

    commit: str
    folder: str
    branch: str | None = None
    dirty: bool | None = None
    remote: str | None = None


class Tracked(msgspec.Struct, frozen=True):
    """What DVC's `file` says of a dataset: the MD5 of its content, of the whole `path` that is tracked.

    `matches`: the dataset has that content (None: it cannot be told, as of a file in a tracked folder).
    `commit` is the revision of the repository that holds `file`; `dirty`: `file` differs from what is
    committed there, so that the revision does not say which data these are.
    """

    file: str
    path: str
    md5: str | None
    matches: bool | None = None
    commit: str | None = None
    dirty: bool | None = None

    @property
    def warning(self) -> str:
        """What is wrong with it, in words; "" if nothing is."""
        if self.matches is False:
            return f"the data are not those that {self.file} names (MD5 {self.md5}): dvc commit, or checkout"
        if self.md5 is None:
            return f"{self.file} declares the data, and no run of the stage has recorded them: dvc repro"
        if self.commit is not None and self.dirty:
            return f"{self.file} is not committed as it is, so revision {self.commit[:12]} names other data"
        return ""


class Dataset(msgspec.Struct, frozen=True):
    """The reference rows. `digest` is "sha256:<hex>" over the bytes of the file, or over the arrays that came
    from Python, where `location` is None. `columns`: name to datatype, the target's too; empty for a matrix
    without names."""

    digest: str
    rows: int
    location: str | None = None
    columns: dict[str, str] = {}
    target: str | None = None
    size_bytes: int | None = None
    dvc: Tracked | None = None


class Environment(msgspec.Struct, frozen=True):
    """What was installed where the version was registered: distribution to exact version, by name."""

    python: str
    platform: str
    packages: dict[str, str] = {}


class ParentRun(msgspec.Struct, frozen=True):
    """The training run. `tracking_uri` is None for a run of the registry's own store, whose child the
    version's run then is; else where it is, without credentials."""

    run_id: str
    tracking_uri: str | None = None


class Quality(msgspec.Struct, frozen=True):
    """Metrics of a version's own answers on its reference rows. `absent`: metric to why there is none."""

    task: str
    rows: int
    metrics: dict[str, float] = {}
    absent: dict[str, str] = {}


class Check(msgspec.Struct, frozen=True):
    """One check of the contract suite, as it went."""

    name: str
    passed: bool
    detail: str = ""


class Provenance(msgspec.Struct, frozen=True):
    """All that is recorded of a version besides the Version itself; None: it was not to be found out.

    `generated`: the checks ran on made-up rows. `conversion`: the conversion report, field by field.
    """

    dataset: Dataset | None = None
    code: Code | None = None
    environment: Environment | None = None
    parent: ParentRun | None = None
    quality: Quality | None = None
    checks: tuple[Check, ...] = ()
    generated: bool = False
    conversion: dict[str, Any] | None = None
    interlock: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should know before the record is relied on."""
        tracked = None if self.dataset is None else self.dataset.dvc
        return (tracked.warning,) if tracked is not None and tracked.warning else ()
