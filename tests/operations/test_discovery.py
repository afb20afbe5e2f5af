"""A node is alive while its lock is held, and only then; its file says how to reach it."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from interlock.core.errors import ConfigError, NodeUnreachable, SchemaTooNew
from interlock.operations.access import check_access
from interlock.operations.discovery import find_node, read_node_file, read_token

NODE_FILE = '{"schema":1,"node":"local","pid":1,"http_port":81,"admin_port":82,"host":"0.0.0.0","later":true}'


@pytest.fixture
def run(interlock_home: Path) -> Path:
    folder = interlock_home / "run"
    folder.mkdir(parents=True)
    return folder


def test_no_home_no_node(interlock_home: Path) -> None:
    assert find_node(interlock_home) is None
    assert read_token(interlock_home) is None


def test_a_dead_nodes_file_is_no_node(run: Path) -> None:
    (run / "node.json").write_text(NODE_FILE)
    (run / "node.lock").touch()
    assert find_node(run.parent) is None


def test_the_lock_of_another_process_makes_it_alive(run: Path) -> None:
    (run / "node.json").write_text(NODE_FILE)
    (run / "node.lock").touch()
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run / "node.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = find_node(run.parent)
        assert found is not None
        assert (found.http_url, found.admin_url) == ("http://127.0.0.1:81", "http://127.0.0.1:82")
    assert find_node(run.parent) is None


def test_looking_does_not_keep_the_lock(run: Path) -> None:
    (run / "node.json").write_text(NODE_FILE)
    (run / "node.lock").touch()
    assert find_node(run.parent) is None
    with (run / "node.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_damaged_or_newer_file_is_told(run: Path) -> None:
    (run / "node.json").write_text("{")
    with pytest.raises(NodeUnreachable, match=r"node\.json cannot be read"):
        read_node_file(run.parent)
    (run / "node.json").write_text(NODE_FILE.replace('"schema":1', '"schema":2'))
    with pytest.raises(SchemaTooNew, match="schema 2"):
        read_node_file(run.parent)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_beyond_loopback_wants_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="wants a token"):
        check_access(host, None)
    check_access(host, "0123456789abcdef")


@pytest.mark.parametrize("token", ["", "short", "0123456789abcde\n", "\u00e40123456789abcdef"])
def test_a_weak_token_is_refused_even_on_loopback(token: str) -> None:
    with pytest.raises(ConfigError, match="want at least 16"):
        check_access("127.0.0.1", token)
