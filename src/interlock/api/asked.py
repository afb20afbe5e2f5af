"""Decides what the body of a release asks for, and calls the operation that does it."""

from typing import Any, Literal

import msgspec

from interlock.core.errors import MalformedMessage
from interlock.core.policy import Policy
from interlock.operations import release
from interlock.operations.context import Context
from interlock.registry.rows import ReleaseRow


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version to release: by number, or by alias, or neither for the newest; and how. `policy` is for
    `canary`, `shadow` and `ab` (whose candidates are its `arms`, or the version); of `blue-green`, `keep_s`
    is how many seconds the old version stays in memory."""

    version: str | None = None
    alias: str | None = None
    strategy: Literal["now", "canary", "blue-green", "shadow", "ab"] = "now"
    policy: Policy | None = None
    keep_s: float | None = None


class ResumeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`budget` replaces that of the release's policy."""

    budget: float | None = None


class _Rules(msgspec.Struct, frozen=True):
    """What of the policy was said: the rest is left to the app file."""

    policy: dict[str, Any] | None = None


_release_request = msgspec.json.Decoder(ReleaseRequest)
_resume_request = msgspec.json.Decoder(ResumeRequest)


def release_asked(body: bytes) -> ReleaseRequest:
    """The body of a release; empty: the newest version, all at once.

    Raises: MalformedMessage; ConfigError for a policy that cannot be.
    """
    if not body.strip():
        return ReleaseRequest()
    try:
        wanted = _release_request.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f'the body is not {{"version": …}} or {{"alias": …}}: {error}') from None
    if wanted.version is not None and wanted.alias is not None:
        raise MalformedMessage("the body has both a version and an alias: want one of them, or neither")
    if wanted.policy is not None and wanted.strategy not in ("canary", "shadow", "ab"):
        raise MalformedMessage(
            f"the body has a policy, which is for canary, shadow and ab, and strategy {wanted.strategy!r}"
        )
    if wanted.keep_s is not None and wanted.strategy != "blue-green":
        raise MalformedMessage(
            f"the body has keep_s, which is for blue-green, and strategy {wanted.strategy!r}; a canary's "
            "is in its policy"
        )
    return wanted


def carry_on(ctx: Context, name: str, body: bytes) -> ReleaseRow:
    """Ask for the release that a body asks for. Raises: as `release_asked` and operations/release.py."""
    wanted = release_asked(body)
    rules = msgspec.json.decode(body, type=_Rules).policy if wanted.policy is not None else None
    selector = wanted.version if wanted.alias is None else f"@{wanted.alias}"
    if wanted.strategy == "canary":
        return release.release_canary(ctx, name, selector, rules)
    if wanted.strategy == "shadow":
        return release.release_shadow(ctx, name, selector, rules)
    if wanted.strategy == "ab":
        return release.release_ab(ctx, name, selector, rules)
    if wanted.strategy == "blue-green":
        keep_s = release.KEEP_S if wanted.keep_s is None else wanted.keep_s
        return release.release_blue_green(ctx, name, selector, keep_s)
    return release.release_now(ctx, name, selector)


def resumption(body: bytes) -> ResumeRequest:
    """The body of a resumption; empty: nothing changes. Raises: MalformedMessage."""
    try:
        return _resume_request.decode(body) if body.strip() else ResumeRequest()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f'the body is not {{"budget": …}}: {error}') from None
