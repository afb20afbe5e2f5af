"""The node's log: one JSON object a line, and no secret in any of them."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.app.logs import HIDDEN, fields, set_up


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_a_record_is_one_line_with_its_fields() -> None:
    out = io.StringIO()
    set_up("control", stream=out)
    logging.getLogger("interlock.x").info("two\nlines", extra=fields(model="iris", path=Path("/a"), pid=99))
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert record["message"] == "two\nlines"
    assert (record["process"], record["model"], record["path"]) == ("control", "iris", "/a")
    assert record["pid"] != 99, "a field never hides what every line carries"


def test_levels_below_the_chosen_one_are_silent() -> None:
    out = io.StringIO()
    set_up("control", level="warning", stream=out)
    logging.getLogger("interlock.x").info("quiet")
    assert out.getvalue() == ""


def test_a_secret_is_hidden_in_messages_fields_and_tracebacks() -> None:
    out = io.StringIO()
    secret = 'hush"hush'
    set_up("control", secrets=[secret], stream=out)
    log = logging.getLogger("interlock.x")
    log.info("Bearer %s", secret, extra=fields(header=f"Bearer {secret}", admin_token="another"))
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("refused")
    text = out.getvalue()
    assert json.dumps(secret)[1:-1] not in text and secret not in text and "another" not in text
    assert text.count(HIDDEN) >= 4
    assert all(json.loads(line) for line in text.splitlines())


def test_a_log_may_go_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "worker-0.log"
    set_up("worker-0", file=file)
    logging.getLogger("interlock.x").info("here")
    assert json.loads(file.read_text())["message"] == "here"
    logging.getLogger().handlers[0].close()
