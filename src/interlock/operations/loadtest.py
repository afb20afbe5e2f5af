"""The use case `loadtest`: does a version keep its p99 at a rate of requests?

It runs on a private node, or on one that is there. The private one has a home in a temporary folder, with the
version's artifact, one release and no registry: nothing that it does reaches the version's own home, or an
MLflow server.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from interlock.core.appfile import model_settings
from interlock.core.errors import ConfigError, NodeUnreachable, ReleaseFailed, Unsupported
from interlock.core.model import ModelSettings, Version, artifact_path
from interlock.core.settings import NodeConfig, check_config
from interlock.operations import reference
from interlock.operations.access import is_loopback
from interlock.operations.arrivals import schedule
from interlock.operations.discovery import NodeFile, read_node_file
from interlock.operations.load import OpenLoopResult, Request, Timeline, open_loop
from interlock.operations.resolve import resolve
from interlock.operations.selftest_traffic import encoded, made_up
from interlock.operations.settings_file import read_app_file
from interlock.operations.wait import poll_release
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.checks import Report, worst
from interlock.rollout.loadtest import Seen, Wanted, judge

if TYPE_CHECKING:
    from interlock.operations.context import Context

START_S = 60.0
"""How long a private node may take until it serves the version."""
END_S = 20.0
_POLL_S = 0.05
_NOT_PASSED_ON = ("INTERLOCK_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
"""A private node with these would want a token, or set aliases in a registry that others use."""


class Plan(msgspec.Struct, frozen=True):
    """What is sent: `wanted.rps` requests of one row a second for `duration_s`, after `warm_up_s`, by
    `connections`. `data`: the file with rows, None for made-up ones; `target`: the column in it to leave out.
    `url`: a running node's data port, beyond this machine only with `allow_remote`; None for a private node,
    of `workers`.

    Raises: ConfigError.
    """

    wanted: Wanted
    duration_s: float = 30.0
    warm_up_s: float = 3.0
    connections: int = 64
    timeout_s: float = 10.0
    workers: int = 1
    data: Path | None = None
    target: str | None = None
    url: str | None = None
    allow_remote: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.duration_s <= 86400 and 0 <= self.warm_up_s <= 3600 and self.connections >= 1):
            raise ConfigError(
                f"{self.duration_s:g} s after {self.warm_up_s:g} s of warm-up, {self.connections} connections"
                ": want up to a day after up to an hour, and at least one"
            )
        at = urlsplit(self.url or "http://127.0.0.1")
        if at.scheme != "http" or not at.hostname:
            raise ConfigError(
                f"url {self.url!r}: want the data port of a node, such as http://127.0.0.1:8000"
            )
        if not is_loopback(at.hostname) and not self.allow_remote:
            raise ConfigError(
                f"{at.hostname!r} is another machine, which others may use: to load it all the same, say "
                "--allow-remote"
            )


def loadtest(
    ctx: Context,
    name: str,
    selector: str | None,
    plan: Plan,
    progress: Callable[[str], object] = lambda words: None,
) -> Report:
    """Load a version (a number, @alias, or None for the newest) and judge what came of it.

    Raises: ModelNotFound, VersionNotFound, RegistryError, ArtifactError; Unsupported for a version with side
    effects; CheckFailed, ConfigError for data that do not fit; NodeUnreachable, ReleaseFailed where no node
    serves it.
    """
    version = resolve(ctx, name, selector, trust=plan.trust, progress=progress)
    if not version.capabilities.side_effect_free:
        raise Unsupported(f"{version.key} has side effects, which a load would really have: it is not asked")
    if version.capabilities.streaming:
        raise Unsupported(f"{version.key} answers in parts: a latency is of a whole answer")
    data = None if plan.data is None else reference.read(plan.data, plan.target).inputs
    sent = [encoded(version.signature, one) for one in made_up(version.signature, data)]
    if plan.url is not None:
        found = _loaded(plan.url, version, sent, plan, progress)
    else:
        app = read_app_file(ctx.home)
        stored = ctx.ledger.model(name)
        settings = model_settings(app, name, ModelSettings() if stored is None else stored.settings)
        progress(f"starting a node for version {version.number}")
        with _private_node(ctx.home, version, settings, plan.workers) as url:
            found = _loaded(url, version, sent, plan, progress)
    seen = seen_after(plan, *found)
    checks = judge(plan.wanted, seen)
    facts = {
        "rps": plan.wanted.rps,
        "duration_s": plan.duration_s,
        "warm_up_s": plan.warm_up_s,
        "url": plan.url,
        "workers": None if plan.url else plan.workers,
        "latency": msgspec.to_builtins(found[0].latency),
        "lag": msgspec.to_builtins(found[0].lag),
    }
    return Report("loadtest", name, version.number, worst(checks), checks, plan.wanted.alpha, facts)


def seen_after(plan: Plan, result: OpenLoopResult, timeline: Timeline) -> Seen:
    """What came of the requests that were due after the warm-up."""
    due = np.array(timeline.due_s)
    latency = np.array([np.nan if at is None else at / 1e3 for at in timeline.latency_ms], np.float64)
    counted = due >= due[0] + plan.warm_up_s
    end_s = due[-1] + plan.wanted.p99_s
    in_time = int((due + latency <= end_s)[counted].sum())
    lag_s = (result.lag.p99_ms or 0.0) / 1e3
    return Seen(latency[counted], in_time, lag_s, result.waited, result.failures)


def _loaded(
    url: str,
    version: Version,
    sent: list[tuple[bytes, dict[str, str]]],
    plan: Plan,
    progress: Callable[[str], object],
) -> tuple[OpenLoopResult, Timeline]:
    path = f"{url.rstrip('/')}/v2/models/{quote(version.model, safe='')}/versions/{version.number}/infer"
    sizes = {headers["inference-header-content-length"] for _, headers in sent}
    # A connection's head is one for all bodies: those of another length are left out.
    length = max(sizes, key=lambda size: sum(h["inference-header-content-length"] == size for _, h in sent))
    bodies = [body for body, headers in sent if headers["inference-header-content-length"] == length]
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length}
    _ask_once(path, bodies[0], headers)
    progress(
        f"sending {plan.wanted.rps:g} requests a second for {plan.warm_up_s:g} s of warm-up and "
        f"{plan.duration_s:g} s"
    )
    request = Request(path, bodies[0], headers, more=tuple(bodies[1:]))
    due_s = schedule(plan.wanted.rps, plan.warm_up_s + plan.duration_s, poisson=True)
    return open_loop(request, due_s, connections=plan.connections, timeout_s=plan.timeout_s)


def _ask_once(url: str, body: bytes, headers: dict[str, str]) -> None:
    """Raises: NodeUnreachable if the version does not answer at all."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=30)
    try:
        connection.request("POST", at.path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NodeUnreachable(f"{url} does not answer: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        told = said[:300].decode(errors="replace")
        raise NodeUnreachable(
            f"{url} answers {answer.status} ({told}): give rows that the version can answer (--data), and "
            "with --url a version that is live there"
        )


@contextmanager
def _private_node(home: Path, version: Version, settings: ModelSettings, workers: int) -> Iterator[str]:
    """The data port of a node that serves the version, alone, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="il-", ignore_cleanup_errors=True) as text:
        own = Path(text)  # a short path: that of a Unix socket may have 107 bytes
        place = artifact_path(own, version.digest)
        place.parent.mkdir()
        place.symlink_to(artifact_path(home, version.digest), target_is_directory=True)
        config = check_config(NodeConfig(own, http_port=0, admin_port=0, workers=workers, drain_s=2.0))
        ledger = Ledger(own / "ledger.db")
        try:
            ledger.put_version(version, time.time())
            ledger.put_settings(version.model, settings, time.time())
            row = ledger.request_release(version.model, version.number, "now", time.time())
            log = own / "node.log"
            child = _spawn(config, log)
            try:
                node = _wait_up(child, own, log)
                done = poll_release(ledger.release, row.id, START_S)
                if done.state is not ReleaseState.DONE:
                    raise ReleaseFailed(f"version {version.number} did not come up: {done.reason}")
                yield node.http_url
            finally:
                _end(child)
        finally:
            ledger.close()


def _spawn(config: NodeConfig, log: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_PASSED_ON}
    argument = msgspec.json.encode(config, enc_hook=str).decode()
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "interlock.app.node", argument],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=environment,
        )


def _wait_up(child: subprocess.Popen[bytes], home: Path, log: Path) -> NodeFile:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        if child.poll() is not None:
            said = log.read_text(errors="replace")[-1000:]
            raise NodeUnreachable(f"the node ended with code {child.returncode}; it last said: {said}")
        found = read_node_file(home)
        if found is not None and found.pid == child.pid:
            return found
        time.sleep(_POLL_S)
    raise NodeUnreachable(f"the node did not open its ports within {START_S:g} s")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()  # its children see that it is gone, and leave
        child.wait()
