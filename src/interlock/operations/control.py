"""Decides where a question about releases goes: to the admin API of a node, or to the home folder itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from interlock.core.errors import InterlockError, NodeUnreachable
from interlock.operations.discovery import find_node, read_token
from interlock.operations.http import TIMEOUT_S, call, error_of
from interlock.operations.status import ModelSummary, Quarantine, Status, VersionSummary
from interlock.registry.rows import Event, ReleaseRow

if TYPE_CHECKING:
    from interlock.operations.context import Context
    from interlock.operations.description import Description
    from interlock.rollout.certificate import Certificate
    from interlock.rollout.view import RolloutView

T = TypeVar("T")
Rules = dict[str, Any]
"""Fields of the Policy that were said with a release; the app file and the defaults say the rest."""
Step = Literal["pause", "promote", "abort"]
"""What a person may do with a release that is under way; resuming it takes an option."""


class Control(Protocol):
    """What commands ask and tell. `running`: whether a node carries out what is asked."""

    running: bool

    def status(self) -> Status: ...
    def models(self) -> list[ModelSummary]: ...
    def versions(self, name: str) -> list[VersionSummary]: ...
    def describe(self, name: str, selector: str | None) -> Description: ...
    def events(self, model: str | None, after_seq: int | None, limit: int) -> list[Event]: ...
    def quarantine(self) -> list[Quarantine]: ...
    def release(self, name: str, selector: str | None) -> ReleaseRow: ...
    def release_canary(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow: ...
    def release_shadow(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow: ...
    def release_ab(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow: ...
    def release_blue_green(self, name: str, selector: str | None, keep_s: float) -> ReleaseRow: ...
    def rollback(self, name: str) -> ReleaseRow: ...
    def step(self, name: str, step: Step) -> ReleaseRow: ...
    def resume(self, name: str, budget: float | None) -> ReleaseRow: ...
    def read_release(self, release_id: int) -> ReleaseRow: ...
    def rollout(self, name: str) -> RolloutView: ...
    def certificate(self, release_id: int) -> Certificate: ...


@contextmanager
def open_control(home: Path, url: str | None) -> Iterator[Control]:
    """The node at `url`; else the one that is alive in `home`; else the home folder itself.

    Raises: NodeUnreachable, LedgerError, ConfigError.
    """
    if url is not None:
        yield AdminControl(url, os.environ.get("INTERLOCK_TOKEN") or None)
        return
    node = find_node(home)
    if node is not None:
        yield AdminControl(node.admin_url, read_token(home))
        return
    from interlock.operations.context import open_context

    context = open_context(home)
    try:
        yield HomeControl(context)
    finally:
        context.close()


class AdminControl:
    """Through the admin API of a node."""

    running = True

    def __init__(self, url: str, token: str | None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        self._token = token
        self._timeout_s = timeout_s

    def status(self) -> Status:
        return self._ask("GET", "/api/status", Status)

    def models(self) -> list[ModelSummary]:
        return self._ask("GET", "/api/models", list[ModelSummary])

    def versions(self, name: str) -> list[VersionSummary]:
        return self._ask("GET", f"/api/models/{quote(name, safe='')}/versions", list[VersionSummary])

    def describe(self, name: str, selector: str | None) -> Description:
        from interlock.operations.description import Description

        which = "newest" if selector is None else selector
        return self._ask(
            "GET", f"/api/models/{quote(name, safe='')}/versions/{quote(which, safe='@')}", Description
        )

    def events(self, model: str | None, after_seq: int | None, limit: int) -> list[Event]:
        asked = {"model": model, "after": after_seq, "limit": limit}
        query = urlencode({key: value for key, value in asked.items() if value is not None})
        return self._ask("GET", f"/api/events?{query}", list[Event])

    def quarantine(self) -> list[Quarantine]:
        return self._ask("GET", "/api/quarantine", list[Quarantine])

    def release(self, name: str, selector: str | None) -> ReleaseRow:
        return self._release(name, selector)

    def release_canary(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        return self._release(name, selector, strategy="canary", policy=rules)

    def release_shadow(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        return self._release(name, selector, strategy="shadow", policy=rules)

    def release_ab(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        return self._release(name, selector, strategy="ab", policy=rules)

    def release_blue_green(self, name: str, selector: str | None, keep_s: float) -> ReleaseRow:
        return self._release(name, selector, strategy="blue-green", keep_s=keep_s)

    def _release(self, name: str, selector: str | None, **how: Any) -> ReleaseRow:
        wanted: dict[str, Any] = how
        if selector is not None:
            alias = selector.startswith("@")
            wanted = {**how, "alias": selector[1:]} if alias else {**how, "version": selector}
        return self._ask("POST", f"/api/models/{quote(name, safe='')}/release", ReleaseRow, wanted)

    def rollback(self, name: str) -> ReleaseRow:
        return self._ask("POST", f"/api/models/{quote(name, safe='')}/rollback", ReleaseRow)

    def step(self, name: str, step: Step) -> ReleaseRow:
        return self._ask("POST", f"/api/models/{quote(name, safe='')}/{step}", ReleaseRow)

    def resume(self, name: str, budget: float | None) -> ReleaseRow:
        path = f"/api/models/{quote(name, safe='')}/resume"
        return self._ask("POST", path, ReleaseRow, {} if budget is None else {"budget": budget})

    def rollout(self, name: str) -> RolloutView:
        from interlock.rollout.view import RolloutView

        return self._ask("GET", f"/api/models/{quote(name, safe='')}/rollout", RolloutView)

    def certificate(self, release_id: int) -> Certificate:
        from interlock.rollout.certificate import Certificate

        return self._ask("GET", f"/api/releases/{release_id}/certificate", Certificate)

    def read_release(self, release_id: int) -> ReleaseRow:
        return self._ask("GET", f"/api/releases/{release_id}", ReleaseRow)

    def _ask(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        sent = None if body is None else msgspec.json.encode(body)
        answer = call(self.url, method, path, sent, self._token, self._timeout_s)
        if answer.status not in (200, 202):
            raise error_of(self.url, answer)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.DecodeError as error:
            raise InterlockError(
                f"{self.url}{path} answered what this Interlock cannot read: {error}"
            ) from None


class HomeControl:
    """In this process, on a home folder in which no node runs."""

    running = False

    def __init__(self, context: Context) -> None:
        self._context = context

    def status(self) -> Status:
        from interlock.operations import status

        return status.status(self._context, None)

    def models(self) -> list[ModelSummary]:
        from interlock.operations import status

        return status.models(self._context, None)

    def versions(self, name: str) -> list[VersionSummary]:
        from interlock.operations import status

        return status.versions(self._context, name, None)

    def describe(self, name: str, selector: str | None) -> Description:
        from interlock.operations import description

        return description.describe(self._context, name, selector)

    def events(self, model: str | None, after_seq: int | None, limit: int) -> list[Event]:
        from interlock.operations import status

        return status.events(self._context, model, after_seq, limit)

    def quarantine(self) -> list[Quarantine]:
        return []

    def release(self, name: str, selector: str | None) -> ReleaseRow:
        from interlock.operations import release

        return release.release_now(self._context, name, selector)

    def release_canary(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        from interlock.operations import release

        return release.release_canary(self._context, name, selector, rules)

    def release_shadow(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        from interlock.operations import release

        return release.release_shadow(self._context, name, selector, rules)

    def release_ab(self, name: str, selector: str | None, rules: Rules) -> ReleaseRow:
        from interlock.operations import release

        return release.release_ab(self._context, name, selector, rules)

    def release_blue_green(self, name: str, selector: str | None, keep_s: float) -> ReleaseRow:
        from interlock.operations import release

        return release.release_blue_green(self._context, name, selector, keep_s)

    def rollback(self, name: str) -> ReleaseRow:
        from interlock.operations import release

        return release.rollback(self._context, name)

    def step(self, name: str, step: Step) -> ReleaseRow:
        from interlock.operations import release

        work = {"pause": release.pause, "promote": release.promote, "abort": release.abort}[step]
        return work(self._context, name)

    def resume(self, name: str, budget: float | None) -> ReleaseRow:
        from interlock.operations import release

        return release.resume(self._context, name, budget)

    def rollout(self, name: str) -> RolloutView:
        raise NodeUnreachable(f"no node runs in {self._context.home}, so no release of {name!r} goes on")

    def certificate(self, release_id: int) -> Certificate:
        from interlock.operations.certificate import certificate

        return certificate(self._context, release_id)

    def read_release(self, release_id: int) -> ReleaseRow:
        return self._context.ledger.release(release_id)
