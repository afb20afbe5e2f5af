"""Holds that what MLflow's calls need of the process is there while they run, and gone afterwards."""

import logging
import os
import threading

import pytest

from interlock.registry.quiet import ALWAYS, UNLESS_SET, quiet


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*ALWAYS, *UNLESS_SET):
        monkeypatch.delenv(key, raising=False)


def test_it_is_lent_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    before, level = dict(os.environ), logging.getLogger("mlflow").level
    with pytest.raises(ValueError, match="planted"), quiet(), quiet():
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
        assert logging.getLogger("mlflow").level == logging.WARNING
        raise ValueError("planted")
    assert dict(os.environ) == before and logging.getLogger("mlflow").level == level


def test_what_the_user_says_of_retries_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    with quiet():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"


def test_of_threads_that_overlap_the_last_puts_it_back() -> None:
    """Each on its own would put back what the other had set."""
    before = dict(os.environ)
    inside, leave = threading.Barrier(2), threading.Event()

    def other() -> None:
        with quiet():
            inside.wait(10)
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        inside.wait(10)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    leave.set()
    thread.join(10)
    assert dict(os.environ) == before
