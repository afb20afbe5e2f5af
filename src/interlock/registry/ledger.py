"""Owns the ledger: one row per model, version and release, and the append-only event log, each change whole.

Every method is one transaction and may be called from any thread and any process. A change and the event that
tells of it are written together. SQLite in WAL mode with full synchronisation: what a method has returned is
on the disk, whatever is killed afterwards. Past 400 lines because a release, its model's row and its event
change in one transaction, and those read best side by side.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from interlock.core.errors import LedgerError, ModelNotFound, ReleaseRefused, VersionNotFound
from interlock.core.model import Model, ModelSettings, Version, check_fault
from interlock.core.policy import Policy
from interlock.core.provenance import Provenance, Quality
from interlock.evidence.exceedance import Cut
from interlock.registry import schema
from interlock.registry.database import Database
from interlock.registry.rows import (
    NEXT_STATES,
    OPEN_STATES,
    Event,
    Followed,
    RampEpoch,
    ReleaseRow,
    ReleaseState,
)
from interlock.registry.schema import epochs, events, meta, models, releases, versions

__all__ = ["Event", "Ledger", "RampEpoch", "ReleaseRow", "ReleaseState"]


class _Measured(msgspec.Struct):
    """The part of a Provenance that a list shows; the rest is long and stays unread."""

    quality: Quality | None = None


class Ledger:
    """The ledger in one SQLite file, opened (and brought to the newest schema) at once.

    `busy_timeout_s` bounds the wait for another writer.
    Raises: SchemaTooNew; LedgerError when the file cannot be opened, read or written, here and in every
    method.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout_s: float = 5.0,
        migrations: Sequence[schema.Migration] = schema.MIGRATIONS,
    ) -> None:
        self.path = path
        self._database = Database(path, busy_timeout_s)
        try:
            with self._database.write() as connection:
                schema.migrate(connection, migrations)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    # Models and versions

    def put_version(
        self,
        version: Version,
        time_s: float,
        *,
        replace: bool = False,
        provenance: Provenance | None = None,
    ) -> None:
        """Record a version for good, and its model with default settings if that is new.

        The same record again changes nothing. `replace` is for a number that the registry deleted and gave
        out anew; what a live or open release names is never replaced.
        Raises: LedgerError if another record stands under this model and number; ConfigError for a fault.
        """
        check_fault(version)
        values = {
            "record": _json(version),
            "created_s": time_s,
            "provenance": None if provenance is None else _json(provenance),
        }
        with self._database.write() as connection:
            old = connection.execute(
                sa.select(versions.c.record).where(
                    versions.c.model == version.model, versions.c.number == version.number
                )
            ).scalar()
            # As structs: an older Interlock wrote fewer fields.
            if old is not None and msgspec.json.decode(old, type=Version) == version:
                return
            body = {
                "number": version.number,
                "digest": version.digest,
                "runtime": version.runtime,
                "placement": str(version.placement),
            }
            if old is not None:
                before = msgspec.json.decode(old, type=Version)
                if not replace or self._in_use(connection, version.model, version.number):
                    raise LedgerError(
                        f"version {version.number} of {version.model!r} is recorded with digest "
                        f"{before.digest}, now {version.digest} came: a version is immutable; "
                        "register the new artifact as a version of its own"
                    )
                body["replaced_digest"] = before.digest
                connection.execute(
                    versions.update()
                    .where(versions.c.model == version.model, versions.c.number == version.number)
                    .values(**values)
                )
            else:
                self._ensure_model(connection, version.model)
                connection.execute(
                    versions.insert().values(model=version.model, number=version.number, **values)
                )
            self._event(connection, time_s, version.model, "version.registered", body)

    def version(self, model: str, number: str) -> Version | None:
        """The record of one version, or None."""
        with self._database.read() as connection:
            record = connection.execute(
                sa.select(versions.c.record).where(versions.c.model == model, versions.c.number == number)
            ).scalar()
        return None if record is None else msgspec.json.decode(record, type=Version)

    def provenance(self, model: str, number: str) -> Provenance | None:
        """What is recorded of one version beside itself; None for one of an older Interlock, or unknown."""
        with self._database.read() as connection:
            found = connection.execute(
                sa.select(versions.c.provenance).where(versions.c.model == model, versions.c.number == number)
            ).scalar()
        return None if found is None else msgspec.json.decode(found, type=Provenance)

    def main_metrics(self, model: str) -> dict[str, tuple[str, float]]:
        """The first metric of each version of a model on its reference rows, by number, where it has one."""
        query = sa.select(versions.c.number, versions.c.provenance).where(
            versions.c.model == model, versions.c.provenance.is_not(None)
        )
        with self._database.read() as connection:
            rows = [
                (number, msgspec.json.decode(text, type=_Measured))
                for number, text in connection.execute(query)
            ]
        return {
            number: next(iter(found.quality.metrics.items()))
            for number, found in rows
            if found.quality is not None and found.quality.metrics
        }

    def versions(self, model: str | None = None) -> list[Version]:
        """All recorded versions (of one model), by model, oldest first."""
        query = sa.select(versions.c.record).order_by(
            versions.c.model, versions.c.created_s, versions.c.number
        )
        if model is not None:
            query = query.where(versions.c.model == model)
        with self._database.read() as connection:
            return [msgspec.json.decode(row, type=Version) for row in connection.execute(query).scalars()]

    def created_s(self, model: str, number: str) -> float | None:
        """When a version was recorded (Unix seconds), or None."""
        with self._database.read() as connection:
            return connection.execute(
                sa.select(versions.c.created_s).where(versions.c.model == model, versions.c.number == number)
            ).scalar()

    def model(self, name: str) -> Model | None:
        """The model with its settings, or None."""
        with self._database.read() as connection:
            settings = connection.execute(sa.select(models.c.settings).where(models.c.name == name)).scalar()
        return None if settings is None else Model(name, msgspec.json.decode(settings, type=ModelSettings))

    def models(self) -> list[Model]:
        """All models, by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(models.c.name, models.c.settings).order_by(models.c.name))
            return [Model(name, msgspec.json.decode(s, type=ModelSettings)) for name, s in rows]

    def put_settings(self, model: str, settings: ModelSettings, time_s: float) -> None:
        """Set how requests of a model are treated.

        Raises: ModelNotFound.
        """
        with self._database.write() as connection:
            done = connection.execute(
                models.update().where(models.c.name == model).values(settings=_json(settings))
            )
            if not done.rowcount:
                raise ModelNotFound(f"no model {model!r} in the ledger")
            self._event(
                connection, time_s, model, "model.settings", {"settings": msgspec.to_builtins(settings)}
            )

    def forget(self, model: str, time_s: float) -> None:
        """Take a model, its versions and its releases out, as if they had never been; its events stay.

        Raises: ReleaseRefused while one of its versions is live or a release is open.
        """
        with self._database.write() as connection:
            mine = sa.select(releases.c.id).where(releases.c.model == model)
            under_way = connection.execute(mine.where(releases.c.state.in_(OPEN_STATES))).first()
            if under_way is not None or self._live(connection, model) is not None:
                raise ReleaseRefused(f"model {model!r} is in use: unload it before it is forgotten")
            connection.execute(epochs.delete().where(epochs.c.release.in_(mine)))
            for table in (releases, versions):
                connection.execute(table.delete().where(table.c.model == model))
            connection.execute(models.delete().where(models.c.name == model))
            connection.execute(meta.delete().where(meta.c.key == _followed_key(model)))
            self._event(connection, time_s, model, "model.forgotten", {})

    # Releases

    def request_release(
        self,
        model: str,
        number: str,
        strategy: str,
        time_s: float,
        *,
        supersede: bool = False,
        policy: Policy | None = None,
    ) -> ReleaseRow:
        """A new release in state `requested`. `supersede` ends an open one in the same transaction.

        Raises: VersionNotFound if the version is not recorded; ReleaseRefused while another release of the
        model is open.
        """
        with self._database.write() as connection:
            known = connection.execute(
                sa.select(versions.c.number).where(versions.c.model == model, versions.c.number == number)
            ).scalar()
            if known is None:
                raise VersionNotFound(f"no version {number!r} of model {model!r} in the ledger")
            open_one = connection.execute(
                sa.select(releases).where(releases.c.model == model, releases.c.state.in_(OPEN_STATES))
            ).one_or_none()
            if open_one is not None:
                row = _release(open_one)
                if not supersede:
                    raise ReleaseRefused(
                        f"release {row.id} of {model!r} (version {row.number}) is still {row.state}: "
                        f"wait until it has finished, or end it: interlock abort {model}"
                    )
                reason = f"version {number} was asked for instead"
                self._change(connection, row, ReleaseState.SUPERSEDED, reason, None, {}, time_s)
            live = self._live(connection, model)
            created = connection.execute(
                releases.insert()
                .values(
                    model=model,
                    number=number,
                    strategy=strategy,
                    state=ReleaseState.REQUESTED.value,
                    reason="",
                    previous_number=None if live is None else live.number,
                    epoch=0,
                    requested_s=time_s,
                    changed_s=time_s,
                    finished_s=None,
                    policy=None if policy is None else _json(policy),
                    weight=0.0,
                    resumed_epoch=0,
                    resumed_s=None,
                )
                .returning(*releases.c)
            ).one()
            row = _release(created)
            body = {
                "release": row.id,
                "number": number,
                "strategy": strategy,
                "previous_number": row.previous_number,
            }
            if policy is not None:
                body["policy"] = msgspec.to_builtins(policy)
            self._event(connection, time_s, model, "release.requested", body)
            return row

    def advance(
        self,
        release_id: int,
        state: ReleaseState | str,
        reason: str = "",
        snapshot: dict[str, Any] | None = None,
        *,
        time_s: float,
        was: ReleaseRow | None = None,
        epoch: RampEpoch | None = None,
        resumed: Policy | None = None,
        number: str | None = None,
    ) -> ReleaseRow:
        """Move a release on; `done` also makes it the model's live one. `snapshot` is what the decision saw.

        `was`: the row that the decision saw; if it stands elsewhere by now, nothing is changed. `epoch`
        begins a new one, with its weight. `resumed`: a person lets it go on, under this policy. `number`: of
        the candidates of an A/B test, the one that goes on alone.
        Raises: LedgerError for an unknown release or a step that its state does not allow.
        """
        wanted = ReleaseState(state)
        with self._database.write() as connection:
            row = self._get(connection, release_id)
            if was is not None and (was.state, was.epoch, was.policy) != (row.state, row.epoch, row.policy):
                raise LedgerError(
                    f"release {release_id} of {row.model!r} is {row.state} by now, not {was.state}"
                )
            if wanted not in NEXT_STATES[row.state]:
                allowed = ", ".join(NEXT_STATES[row.state]) or "nothing, it has finished"
                raise LedgerError(
                    f"release {release_id} of {row.model!r} is {row.state} and cannot become {wanted}; "
                    f"allowed: {allowed}"
                )
            values: dict[str, Any] = {}
            if epoch is not None:
                values |= {"epoch": epoch.number, "weight": epoch.weight}
                self._put_epoch(connection, release_id, epoch)
            if resumed is not None:
                values |= {"policy": _json(resumed), "resumed_epoch": row.epoch, "resumed_s": time_s}
            if number is not None:
                values["number"] = number
            row = self._change(connection, row, wanted, reason, snapshot, values, time_s)
            if wanted is ReleaseState.DONE:
                self._set_live(connection, row.model, release_id)
            return row

    def epochs(self, release_id: int) -> tuple[RampEpoch, ...]:
        """The epochs of a release, oldest first; none where all requests switched at once."""
        query = sa.select(epochs).where(epochs.c.release == release_id).order_by(epochs.c.number)
        with self._database.read() as connection:
            return tuple(
                RampEpoch(row.number, row.weight, msgspec.json.decode(row.cuts, type=_CUTS), row.started_s)
                for row in connection.execute(query)
            )

    def release(self, release_id: int) -> ReleaseRow:
        """One release.

        Raises: LedgerError for an unknown one.
        """
        with self._database.read() as connection:
            return self._get(connection, release_id)

    def set_live(self, model: str, release_id: int | None, time_s: float) -> None:
        """Name the model's live release; None takes the model off the node.

        Raises: ModelNotFound; LedgerError if the release is of another model.
        """
        with self._database.write() as connection:
            if release_id is not None and self._get(connection, release_id).model != model:
                raise LedgerError(f"release {release_id} is not of model {model!r}")
            if not self._set_live(connection, model, release_id):
                raise ModelNotFound(f"no model {model!r} in the ledger")
            self._event(connection, time_s, model, "model.live", {"release": release_id})

    def live(self, model: str) -> ReleaseRow | None:
        """The release that the model's row names, or None."""
        with self._database.read() as connection:
            return self._live(connection, model)

    def last_done(self, model: str) -> str | None:
        """The version of the newest release of a model that was carried out, live or not any more."""
        query = (
            sa.select(releases.c.number)
            .where(releases.c.model == model, releases.c.state == ReleaseState.DONE)
            .order_by(releases.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found: str | None = connection.execute(query).scalar()
            return found

    def open_releases(self) -> list[ReleaseRow]:
        """Those not finished, oldest first; at most one a model."""
        query = sa.select(releases).where(releases.c.state.in_(OPEN_STATES)).order_by(releases.c.id)
        with self._database.read() as connection:
            return [_release(row) for row in connection.execute(query)]

    def releases(self, model: str | None = None, limit: int = 100) -> list[ReleaseRow]:
        """The newest `limit` releases (of one model), newest first."""
        query = sa.select(releases).order_by(releases.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(releases.c.model == model)
        with self._database.read() as connection:
            return [_release(row) for row in connection.execute(query)]

    # Events and the rest

    def append_event(self, kind: str, body: dict[str, Any], *, model: str | None, time_s: float) -> int:
        """Add to the log; returns its `seq`. `body` holds JSON values."""
        with self._database.write() as connection:
            return self._event(connection, time_s, model, kind, body)

    def events(
        self,
        model: str | None = None,
        after_seq: int = 0,
        limit: int = 1000,
        between_s: tuple[float, float] | None = None,
    ) -> list[Event]:
        """Up to `limit` events (of one model) with `seq` > `after_seq`, oldest first; `between_s`: only those
        of that time (Unix)."""
        query = sa.select(events).where(events.c.seq > after_seq).order_by(events.c.seq).limit(limit)
        if model is not None:
            query = query.where(events.c.model == model)
        if between_s is not None:
            query = query.where(events.c.time_s.between(*between_s))
        with self._database.read() as connection:
            return [_as_event(row) for row in connection.execute(query)]

    def latest_events(self, model: str | None = None, limit: int = 50) -> list[Event]:
        """The newest `limit` events (of one model), oldest first."""
        query = sa.select(events).order_by(events.c.seq.desc()).limit(limit)
        if model is not None:
            query = query.where(events.c.model == model)
        with self._database.read() as connection:
            return [_as_event(row) for row in connection.execute(query)][::-1]

    def followed(self, model: str) -> Followed | None:
        """What was last done about the alias that a model follows; None before the first time."""
        with self._database.read() as connection:
            value = self._meta(connection, _followed_key(model))
        return None if value is None else msgspec.json.decode(value, type=Followed)

    def put_followed(
        self, model: str, followed: Followed, outcome: str, reason: str, *, time_s: float
    ) -> None:
        """Remember what was done about an alias, with the event `alias.<outcome>` that tells of it."""
        body: dict[str, Any] = {"alias": followed.alias, "number": followed.number, "reason": reason}
        if outcome == "released":
            body["release"] = followed.release
        with self._database.write() as connection:
            self._put_meta(connection, _followed_key(model), _json(followed))
            self._event(connection, time_s, model, f"alias.{outcome}", body)

    def data_version(self) -> int:
        """Grows with every change (each writes an event); equal numbers mean that nothing happened.

        One look into the index: cheap enough to ask several times a second.
        """
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(events.c.seq))).scalar() or 0)

    def changed(self, since: int) -> bool:
        """Whether any process has changed anything after `data_version()` was `since`."""
        return self.data_version() != since

    def next_revision(self) -> int:
        """The number for the next Desired; only grows, across restarts and processes."""
        with self._database.write() as connection:
            number = int(self._meta(connection, "revision") or 0) + 1
            self._put_meta(connection, "revision", str(number))
            return number

    def revision(self) -> int:
        """The last number that `next_revision` gave; 0 before the first."""
        with self._database.read() as connection:
            return int(self._meta(connection, "revision") or 0)

    def node_id(self) -> str:
        """This home's own id: 12 hexadecimal digits, made once."""
        with self._database.write() as connection:
            known = self._meta(connection, "node_id")
            if known is None:
                known = uuid.uuid4().hex[:12]
                self._put_meta(connection, "node_id", known)
            return known

    # Within a transaction

    def _ensure_model(self, connection: sa.Connection, name: str) -> None:
        if connection.execute(sa.select(models.c.name).where(models.c.name == name)).scalar() is None:
            connection.execute(models.insert().values(name=name, settings=_json(ModelSettings())))

    def _in_use(self, connection: sa.Connection, model: str, number: str) -> bool:
        live = self._live(connection, model)
        if live is not None and live.number == number:
            return True
        query = sa.select(releases).where(releases.c.model == model, releases.c.state.in_(OPEN_STATES))
        for row in map(_release, connection.execute(query)):
            arms = row.policy.arms if row.policy is not None else ()
            if number == row.number or number in [arm.version for arm in arms]:
                return True
        return False

    def _get(self, connection: sa.Connection, release_id: int) -> ReleaseRow:
        row = connection.execute(sa.select(releases).where(releases.c.id == release_id)).one_or_none()
        if row is None:
            raise LedgerError(f"no release {release_id} in the ledger")
        return _release(row)

    def _live(self, connection: sa.Connection, model: str) -> ReleaseRow | None:
        query = (
            sa.select(releases)
            .join(models, models.c.live_release == releases.c.id)
            .where(models.c.name == model)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else _release(row)

    def _set_live(self, connection: sa.Connection, model: str, release_id: int | None) -> bool:
        done = connection.execute(
            models.update().where(models.c.name == model).values(live_release=release_id)
        )
        return bool(done.rowcount)

    def _change(
        self,
        connection: sa.Connection,
        row: ReleaseRow,
        state: ReleaseState,
        reason: str,
        snapshot: dict[str, Any] | None,
        values: dict[str, Any],
        time_s: float,
    ) -> ReleaseRow:
        changed = connection.execute(
            releases.update()
            .where(releases.c.id == row.id)
            .values(
                state=state.value,
                reason=reason,
                changed_s=time_s,
                finished_s=time_s if state.finished else None,
                **values,
            )
            .returning(*releases.c)
        ).one()
        body = {
            "release": row.id,
            "number": row.number,
            "from": row.state.value,
            "reason": reason,
            "snapshot": snapshot,
        }
        for name in ("epoch", "weight"):
            if name in values:
                body[name] = values[name]
        self._event(connection, time_s, row.model, f"release.{state.value}", body)
        return _release(changed)

    def _put_epoch(self, connection: sa.Connection, release_id: int, epoch: RampEpoch) -> None:
        connection.execute(
            epochs.insert().values(
                release=release_id,
                number=epoch.number,
                weight=epoch.weight,
                cuts=_json(epoch.cuts),
                started_s=epoch.started_s,
            )
        )

    def _event(
        self, connection: sa.Connection, time_s: float, model: str | None, kind: str, body: dict[str, Any]
    ) -> int:
        added = connection.execute(
            events.insert()
            .values(time_s=time_s, model=model, kind=kind, body=_json(body))
            .returning(events.c.seq)
        )
        return int(added.scalar_one())

    def _meta(self, connection: sa.Connection, key: str) -> str | None:
        return connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar()

    def _put_meta(self, connection: sa.Connection, key: str, value: str) -> None:
        if not connection.execute(meta.update().where(meta.c.key == key).values(value=value)).rowcount:
            connection.execute(meta.insert().values(key=key, value=value))


_CUTS = tuple[Cut, ...]


def _followed_key(model: str) -> str:
    return f"followed:{model}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _release(row: sa.Row[Any]) -> ReleaseRow:
    fields = {str(name): value for name, value in row._mapping.items()}
    policy = fields["policy"]
    fields["policy"] = None if policy is None else msgspec.json.decode(policy, type=Policy)
    return ReleaseRow(**{**fields, "state": ReleaseState(fields["state"])})


def _as_event(row: sa.Row[Any]) -> Event:
    return Event(row.seq, row.time_s, row.model, row.kind, msgspec.json.decode(row.body))
