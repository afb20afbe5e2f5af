"""Control's process: what must hold before its threads start."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sqlalchemy.inspection
import interlock.app.control

before = dict(sqlalchemy.inspection._registrars)
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store

fresh = sqlalchemy.inspection._registrars.keys() - before.keys()
print(*sorted(map(repr, fresh)))
"""


def test_the_import_of_mlflow_changes_nothing_that_a_query_of_the_ledger_uses() -> None:
    """A query inspects its values by what is registered for their types. MLflow is imported in a thread: what
    that registered while its module was half imported failed the query, and with it control."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
