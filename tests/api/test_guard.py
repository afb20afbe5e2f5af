"""Who may speak to the admin API: Host and Origin on loopback, a token beyond."""

import os
from pathlib import Path

import pytest

from interlock.api.guard import Rules, judge, rules
from interlock.core.errors import ConfigError
from interlock.core.settings import NodeConfig
from tests.api.servers import served
from tests.operations.homes import a_home, a_node, a_report

TOKEN = "a-token-of-enough-characters"
LOOPBACK = Rules(None, True)
OPEN = Rules(TOKEN, False)
RIGHT = [f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8002", "127.0.0.1:8002", "[::1]:8002", "LOCALHOST", "127.9.9.9"]
)
def test_names_of_this_machine_pass(host: str) -> None:
    assert judge(LOOPBACK, "/api/models", host, [], []) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8002", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "", "a b",
     "localhost:x", "evil@localhost", "localhost/x", "[::1", "0.0.0.0"],
)  # fmt: skip
def test_other_names_are_refused_on_loopback(host: str) -> None:
    assert judge(LOOPBACK, "/api/models", host, [], []) is not None


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8002", "https://[::1]"])
def test_pages_of_this_machine_may_ask(origin: str) -> None:
    assert judge(LOOPBACK, "/api/models", "localhost:8002", [origin], []) is None


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "file://", "http://localhost.evil.example", "http://[", "ftp://localhost"]
)  # fmt: skip
def test_pages_of_other_sites_may_not(origin: str) -> None:
    assert judge(LOOPBACK, "/api/models", "localhost:8002", [origin], []) is not None
    assert judge(OPEN, "/api/models", "node.example:8002", [origin], RIGHT) is not None


def test_one_bad_origin_among_good_ones_is_enough() -> None:
    origins = ["http://localhost", "https://evil.example"]
    assert judge(LOOPBACK, "/api/models", "localhost", origins, []) is not None


@pytest.mark.parametrize(
    "authorization",
    [[], [""], ["Bearer"], [f"Basic {TOKEN}"], [f"Bearer {TOKEN}x"], [f"Bearer {TOKEN[:-1]}"], RIGHT * 2,
     ["Bearer \xff"]],
)  # fmt: skip
def test_beyond_loopback_only_the_token_opens(authorization: list[str]) -> None:
    assert judge(OPEN, "/api/models", "node.example", [], authorization) is not None
    assert judge(OPEN, "/metrics", "node.example", [], authorization) is not None
    assert judge(OPEN, "/health/ready", "node.example", [], authorization) is None
    assert judge(OPEN, "/api/models", "node.example", [], RIGHT) is None


def test_beyond_loopback_without_a_token_nothing_starts() -> None:
    with pytest.raises(ConfigError, match="wants a token"):
        rules(NodeConfig(home=Path(), admin_host="0.0.0.0"))
    assert rules(NodeConfig(home=Path(), admin_host="0.0.0.0", token=TOKEN)) == OPEN


def test_the_token_in_the_home_folder_is_asked_for(interlock_home: Path) -> None:
    ctx = a_home(interlock_home, iris=1)
    (interlock_home / "run").mkdir()
    (interlock_home / "run" / "token").write_text(TOKEN + os.linesep)
    with served(ctx, a_node(a_report("worker-0"))) as api:
        assert api.ask("GET", "/api/models")[0] == 403
        assert api.ask("GET", "/api/models", headers={"authorization": f"Bearer {TOKEN}"})[0] == 200
        assert api.ask("GET", "/health/live")[0] == 200
    ctx.close()


def test_a_rebound_name_and_a_foreign_page_reach_nothing(interlock_home: Path) -> None:
    ctx = a_home(interlock_home, iris=1)
    with served(ctx, a_node(a_report("worker-0"))) as api:
        for headers in ({"host": "evil.example:8002"}, {"origin": "https://evil.example"}):
            code, body = api.ask("POST", "/api/models/iris/rollback", headers=headers)
            assert (code, body["error"]["code"]) == (403, "Forbidden")
        assert api.pokes == 0
    ctx.close()


def test_a_body_without_an_announced_length_is_bounded_too(interlock_home: Path) -> None:
    ctx = a_home(interlock_home, iris=1)
    with served(ctx, a_node(a_report("worker-0"))) as api:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        chunks = (b"x" * 1000 for _ in range(80))
        connection.request("POST", "/api/models/iris/release", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
    ctx.close()
