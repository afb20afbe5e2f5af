"""Owns the thread that asks the registry where the aliases are that models follow, and asks for releases.

In a thread of its own, for which the end of the process does not wait: MLflow takes seconds to import, and as
long as it likes to answer. What goes wrong is logged once, until it is over.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from interlock.app import logs
from interlock.core.appfile import Follow
from interlock.core.errors import (
    InterlockError,
    LedgerError,
    ModelNotFound,
    RegistryError,
    ReleaseRefused,
)
from interlock.operations import release
from interlock.operations.context import Context
from interlock.registry.rows import Followed, ReleaseRow
from interlock.rollout.follow import Ask, Note, Stay, Wait, next_step

log = logging.getLogger("interlock.follow")

LEAST_PAUSE_S = 0.2
"""Between two looks, however often a webhook asks for one."""

_ASK: dict[str, Callable[[Context, str, str], ReleaseRow]] = {
    "canary": release.release_canary,
    "shadow": release.release_shadow,
    "blue-green": release.release_blue_green,
    "now": release.release_now,
}
_LATER = (RegistryError, LedgerError, ReleaseRefused, ModelNotFound)
"""What may be otherwise at the next look; anything else is for a person to mend."""


class Follower:
    """The aliases of one node, by model. `asked` is called, in the thread, after each release asked for."""

    def __init__(
        self, context: Context, follows: Mapping[str, Follow], asked: Callable[[], object] = lambda: None
    ) -> None:
        self._context = context
        self._follows = follows
        self._asked = asked
        self._woken = threading.Event()
        self._trouble: dict[str, str] = {}

    def start(self) -> None:
        """Look from now on; nothing where no model follows an alias."""
        if self._follows:
            threading.Thread(target=self._run, name="follow", daemon=True).start()

    def wake(self) -> None:
        """Look at all of them soon. From any thread."""
        self._woken.set()

    def look(self, model: str) -> None:
        """Ask where a model's alias is now, and do what is to be done. Never raises."""
        follow = self._follows[model]
        try:
            waits = self._look(model, follow)
        except _LATER as error:
            self._tell(model, type(error).__name__, error.message)
        except Exception as error:
            # The aliases of other models must go on.
            if self._trouble.get(model) != type(error).__name__:
                log.exception("a fault of ours", extra=logs.fields(model=model))
            self._tell(model, type(error).__name__, f"{type(error).__name__}: {error}")
        else:
            self._tell(model, "", waits)

    def _look(self, model: str, follow: Follow) -> str:
        ledger = self._context.ledger
        named = self._context.registry.aliases(model).get(follow.alias)
        live = ledger.live(model)
        newest = next(iter(ledger.releases(model, limit=1)), None)
        step = next_step(
            follow.alias, named, ledger.followed(model), None if live is None else live.number, newest
        )
        match step:
            case Stay():
                return ""
            case Wait(reason):
                return reason
            case Note(number, reason):
                self._remember(model, Followed(follow.alias, number, _id(newest)), "noted", reason)
            case Ask(number):
                self._ask(model, follow, number, newest)
        return ""

    def _ask(self, model: str, follow: Follow, number: str, newest: ReleaseRow | None) -> None:
        try:
            row = _ASK[follow.strategy](self._context, model, number)
        except _LATER:
            raise
        except InterlockError as error:
            self._remember(model, Followed(follow.alias, number, _id(newest)), "refused", error.message)
            return
        reason = f"{follow.alias} names it; as {follow.strategy}"
        self._remember(model, Followed(follow.alias, number, row.id), "released", reason)
        self._asked()

    def _remember(self, model: str, followed: Followed, outcome: str, reason: str) -> None:
        self._context.ledger.put_followed(model, followed, outcome, reason, time_s=self._context.now_s())
        told = logs.fields(model=model, alias=followed.alias, number=followed.number, reason=reason)
        log.log(logging.WARNING if outcome == "refused" else logging.INFO, "alias %s", outcome, extra=told)

    def _tell(self, model: str, kind: str, words: str) -> None:
        before = self._trouble.get(model, "")
        now = kind or words
        self._trouble[model] = now
        if now == before:
            return
        if now:
            log.warning("an alias has to wait", extra=logs.fields(model=model, reason=words))
        else:
            log.info("aliases are followed again", extra=logs.fields(model=model))

    def _run(self) -> None:
        due_s = dict.fromkeys(self._follows, time.monotonic())
        while True:
            for model, follow in self._follows.items():
                if due_s[model] <= time.monotonic():
                    self.look(model)
                    due_s[model] = time.monotonic() + follow.every_s
            time.sleep(LEAST_PAUSE_S)
            if self._woken.wait(max(0.0, min(due_s.values()) - time.monotonic())):
                self._woken.clear()
                due_s = dict.fromkeys(self._follows, time.monotonic())


def _id(row: ReleaseRow | None) -> int:
    return 0 if row is None else row.id
