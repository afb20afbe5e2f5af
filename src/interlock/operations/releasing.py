"""Releases from Python: `interlock.release` and the steps after it, in the words of the command line.

Each call finds its node as a command does: at `url` (the admin API; or INTERLOCK_URL where no `home` is
given), else the one that is alive in the home folder (`home`, or INTERLOCK_HOME, or ~/.interlock), else it
works on the home folder itself, and the next node that starts there carries the release out. The token of the
admin API is read where the command reads it: INTERLOCK_TOKEN with a URL, else the home folder.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from interlock.core.appfile import AppFile, release_policy
from interlock.core.errors import ConfigError, ReleaseFailed
from interlock.core.policy import FOREIGN
from interlock.operations.control import Control, open_control
from interlock.operations.release import KEEP_S
from interlock.operations.wait import poll_release
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.plan import ROLLBACK

if TYPE_CHECKING:
    from interlock.rollout.view import RolloutView

Strategy = Literal["canary", "shadow", "ab", "now", "blue-green"]
_ANSWERING = (ReleaseState.RAMPING, ReleaseState.PAUSED, ReleaseState.KEEPING)


def release(
    name: str,
    version: str | int | None = None,
    *,
    strategy: Strategy = "canary",
    home: Path | str | None = None,
    url: str | None = None,
    wait: bool | None = None,
    timeout_s: float = 120.0,
    **rules: Any,
) -> ReleaseRow:
    """Put a version live: by number, by "@alias", or (None) the newest; as `interlock release` does.

    `strategy`: "canary", by evidence on a growing share of the requests; "shadow", on copies only; "ab", one
    or several versions (`arms`) on fixed shares until feedback (`metrics`) tells; "now", all requests at
    once; "blue-green", the same, but the old version stays in memory for `keep_s` seconds. `rules` are fields
    of the policy of a release that compares (`budget`, `margin`, `slower`, `larger`, `unit` …: the admin
    API's reference lists them); they win over the app file's.

    `wait` None: until the release has ended, or (what compares, and blue-green) until the version answers
    its first share, runs its first copies, or answers all; True: until it has ended; False: not at all.
    Nothing is waited for where no node runs. `timeout_s` bounds the wait only: the release goes on.

    Returns the release's row as it then stands: `id`, `model`, `number` (of the version), `strategy`, `state`
    ("requested", "preparing", "ramping", "paused", "switching", "keeping", "rolling_back"; at its end "done",
    "passed", "failed" or "superseded"), `reason` (why it is paused, or how it ended), `previous_number` (what
    was live), `weight` (the version's share, 0 to 1), `policy`, and Unix times in seconds: `requested_s`,
    `changed_s`, `finished_s` (None while it is open).
    Raises: ConfigError for rules that cannot be; ModelNotFound, VersionNotFound, ArtifactError;
    ReleaseRefused while another release of the model is under way, or where there is nothing to compare with;
    ReleaseFailed if it ended otherwise than asked while this waited, or has not ended within `timeout_s`;
    NodeUnreachable.
    """
    given = _checked(name, strategy, rules)
    selector = None if version is None else str(version)
    with _control(home, url) as control:
        if strategy == "canary":
            row = control.release_canary(name, selector, given)
        elif strategy == "shadow":
            row = control.release_shadow(name, selector, given)
        elif strategy == "ab":
            row = control.release_ab(name, selector, given)
        elif strategy == "blue-green":
            row = control.release_blue_green(name, selector, float(given.get("keep_s", KEEP_S)))
        else:
            row = control.release(name, selector)
        enough = () if wait or strategy == "now" else _ANSWERING
        return _ended(control, row, wait is not False, timeout_s, enough)


def rollback(
    name: str,
    *,
    home: Path | str | None = None,
    url: str | None = None,
    wait: bool = True,
    timeout_s: float = 120.0,
) -> ReleaseRow:
    """Go back to the version that was live before, or stop the release that is under way; `wait`, `timeout_s`
    and what is returned are `release`'s.

    Raises: ModelNotFound; ReleaseRefused where there is nothing to go back to; ReleaseFailed;
    NodeUnreachable.
    """
    with _control(home, url) as control:
        return _ended(control, control.rollback(name), wait, timeout_s, ())


def pause(name: str, *, home: Path | str | None = None, url: str | None = None) -> ReleaseRow:
    """Leave the share of a canary as it is until it is resumed; what is proved against it still counts.

    Raises: ModelNotFound; ReleaseRefused where none is ramping; NodeUnreachable.
    """
    with _control(home, url) as control:
        return control.step(name, "pause")


def resume(
    name: str, *, budget: float | None = None, home: Path | str | None = None, url: str | None = None
) -> ReleaseRow:
    """Let a paused canary go on, its time limit beginning anew; `budget`: from now on, how many extra failed
    requests the trial may cost.

    Raises: ModelNotFound; ReleaseRefused where none is paused; ConfigError; NodeUnreachable.
    """
    with _control(home, url) as control:
        return control.resume(name, budget)


def promote(name: str, *, home: Path | str | None = None, url: str | None = None) -> ReleaseRow:
    """Give a canary all requests, whatever the evidence; returns at once, in state "switching".

    Raises: ModelNotFound; ReleaseRefused where none is under way, and for a shadow; NodeUnreachable.
    """
    with _control(home, url) as control:
        return control.step(name, "promote")


def abort(name: str, *, home: Path | str | None = None, url: str | None = None) -> ReleaseRow:
    """End the release that is under way; the version that was live answers all requests.

    Raises: ModelNotFound; ReleaseRefused where none is under way; NodeUnreachable.
    """
    with _control(home, url) as control:
        return control.step(name, "abort")


def look(name: str, *, home: Path | str | None = None, url: str | None = None) -> RolloutView:
    """How the open release of a model stands, as `interlock watch --once` shows it: `release` (its row),
    `judgement` (each gate with its message, requests and failures of both versions, harm; None where nothing
    is compared), `rate_per_s` (the model's requests a second), `why` (what it waits for).

    Raises: ModelNotFound; NotFound where none is under way; NodeUnreachable, also where no node runs.
    """
    with _control(home, url) as control:
        return control.rollout(name)


def _control(home: Path | str | None, url: str | None) -> AbstractContextManager[Control]:
    from interlock.operations.context import default_home

    if home is None:
        url = url or os.environ.get("INTERLOCK_URL") or None
    folder = default_home() if home is None else Path(home).expanduser()
    return open_control(folder.absolute(), url)


def _checked(name: str, strategy: str, rules: dict[str, Any]) -> dict[str, Any]:
    """The rules as JSON values. Raises: ConfigError."""
    if strategy not in get_args(Strategy):
        raise ConfigError(f"strategy {strategy!r}: want one of {', '.join(get_args(Strategy))}")
    if strategy == "now":
        misfits = list(rules)
    elif strategy == "blue-green":
        misfits = [rule for rule in rules if rule != "keep_s"]
    else:
        misfits = [rule for rule in rules if rule in FOREIGN[strategy][1]]
    if misfits:
        raise ConfigError(f"{', '.join(misfits)}: no rules for a release by {strategy}; leave them out")
    given: dict[str, Any] = msgspec.to_builtins(rules)
    # The metric of an A/B test may be in the app file: its arms are looked at where that is read.
    release_policy(AppFile(), name, {rule: value for rule, value in given.items() if rule != "arms"})
    return given


def _ended(
    control: Control, row: ReleaseRow, wait: bool, timeout_s: float, enough: tuple[ReleaseState, ...]
) -> ReleaseRow:
    if not (wait and control.running):
        return row
    found = poll_release(control.read_release, row.id, timeout_s, enough=enough)
    is_stopped = found.state is ReleaseState.SUPERSEDED and found.strategy != ROLLBACK
    if found.state is ReleaseState.FAILED or is_stopped:
        raise ReleaseFailed(
            f"release {found.id} of {found.model!r} (version {found.number}) {found.state}: {found.reason}"
        )
    return found
