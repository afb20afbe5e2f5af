"""The app file: what it sets, who wins, and what it refuses, each with the offending value."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.appfile import AppFile, Follow, model_settings, node_config, parse_app, release_policy
from interlock.core.errors import ConfigError, InterlockError, SchemaTooNew
from interlock.core.model import ModelSettings, check_name
from interlock.core.policy import Policy
from interlock.core.route import Range
from interlock.core.settings import NodeConfig, ProcessArgs, decode_args, encode_args

HOME = Path("/home/of/a/node")
TEXT = """
schema = 1

[node]
http_port = 9000
workers = 3
drain_s = 2.5

[models.iris]
default_timeout_s = 2
max_batch_rows = 16

[models."a name with spaces"]
queue_rows = 5
"""


def test_flags_win_over_the_file_and_the_file_over_the_defaults() -> None:
    config = node_config(HOME, parse_app(TEXT), {"workers": 7})
    assert config == NodeConfig(home=HOME, http_port=9000, workers=7, drain_s=2.5)


def test_no_file_is_all_defaults() -> None:
    assert node_config(HOME, parse_app(""), {}) == NodeConfig(home=HOME)


def test_workers_may_be_as_many_as_cores() -> None:
    assert node_config(HOME, parse_app('[node]\nworkers = "auto"'), {}, cores=6).workers == 6


def test_what_the_file_says_of_a_model_goes_over_the_ledger_and_leaves_the_rest() -> None:
    app = parse_app(TEXT)
    ledger = ModelSettings(default_timeout_s=1.0, queue_rows=77)
    assert model_settings(app, "iris", ledger) == ModelSettings(2.0, queue_rows=77, max_batch_rows=16)
    assert model_settings(app, "other", ledger) is ledger


def test_a_model_may_follow_an_alias() -> None:
    app = parse_app('[models.iris]\nqueue_rows = 5\n[models.iris.follow]\nalias = "best"\nevery_s = 2')
    assert app.follows == {"iris": Follow("best", "canary", 2.0)}
    assert app.models == {"iris": {"queue_rows": 5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema =", "app.toml"),
        ("schema = 0", "schema = 0"),
        ("schema = true", "schema = True"),
        ("port = 1", "unknown port; known: schema, node, models"),
        ("[node]\nport = 1", "unknown port; known: node, host, http_port"),
        ('[node]\ntoken = "x"', "--token-file"),
        ('[node]\nhome = "x"', "unknown home"),
        ("[node]\nhttp_port = 70000", "http_port = 70000: want 0"),
        ('[node]\nhttp_port = "8000"', "http_port"),
        ("[node]\nhttp_port = 8002", "both 8002"),
        ("[node]\nworkers = 0", "workers = 0: want 1 to 256"),
        ('[node]\nlog_level = "loud"', "'loud': want one of debug"),
        ("[node]\ndrain_s = -1", "drain_s = -1"),
        ("[node]\nmax_body_bytes = 0", "max_body_bytes = 0"),
        ("node = 3", "node = 3: want a table"),
        ("[models]\niris = 3", "iris = 3: want a table"),
        ("[models.iris]\ntimeout = 3", "unknown timeout; known: default_timeout_s"),
        ("[models.iris]\nqueue_rows = 0", "queue_rows = 0"),
        ("[models.iris]\npriority = 2", "priority 0 or 1"),
        ("[models.iris]\nmax_batch_rows = 0", "max_batch_rows = 0"),
        ('[models."a/b"]\nqueue_rows = 1', "'a/b'"),
        ("[models.iris]\nfollow = 3", "follow = 3: want a table"),
        ("[models.iris.follow]", "[models.iris.follow]: Object missing required field `alias`"),
        ('[models.iris.follow]\nalias = "@best"', "[models.iris.follow]: alias '@best'"),
        ('[models.iris.follow]\nalias = "best"\nevery_s = 0', "every_s 0 of an alias"),
        (
            '[models.iris.follow]\nalias = "best"\nstrategy = "ab"',
            "[models.iris.follow]: Invalid enum value 'ab'",
        ),
        ('[models.iris.follow]\nalias = "best"\nhow = 1', "unknown field `how`"),
    ],
)
def test_what_must_not_be_is_refused_with_the_value_and_what_is_wanted(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_app(text)
    assert words in refused.value.message


def test_a_file_of_a_newer_schema_is_refused() -> None:
    with pytest.raises(SchemaTooNew, match="schema 2, this Interlock reads up to 1"):
        parse_app("schema = 2")


def test_an_older_file_is_brought_forward() -> None:
    def ports(tables: dict[str, Any]) -> dict[str, Any]:
        node = dict(tables["node"])
        return {**tables, "node": {"http_port": node.pop("port"), **node}}

    old = parse_app("schema = 1\n[node]\nport = 9\nworkers = 2", migrations=[ports])
    assert old == AppFile(node={"http_port": 9, "workers": 2})
    new = parse_app("schema = 2\n[node]\nhttp_port = 9", migrations=[ports])
    assert new.node == {"http_port": 9}


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        parse_app(text)
    except InterlockError as refused:
        assert refused.message


def test_the_argument_of_a_child_comes_back_as_it_was() -> None:
    args = ProcessArgs(NodeConfig(home=HOME), "worker-0", 2**62, 5, 6, "m/1@abc")
    assert decode_args(encode_args(args)) == args


@pytest.mark.parametrize("name", ["a\udcff", "", "a" * 129, "a/b", "a\nb", " a", ".."])
def test_names_that_cannot_stand_in_urls_files_and_labels(name: str) -> None:
    with pytest.raises(ConfigError, match="model name"):
        parse_app(f"[models.{json.dumps(name)}]") if "\udcff" not in name else check_name(name)


def test_a_long_name_of_any_letters_is_one() -> None:
    assert check_name("\N{STEAM LOCOMOTIVE}" * 128)


POLICY = """
[models.iris]
queue_rows = 5

[models.iris.release]
budget = 20
unit = "header"
guardrails = ["errors"]
ranges = [{output = "y", least = 0}]
"""


def test_the_policy_of_a_release_is_the_file_s_and_what_is_said_with_it_wins() -> None:
    app = parse_app(POLICY)
    found = release_policy(app, "iris", {"budget": 30.0, "margin": 0.01})
    assert found == Policy(
        budget=30, margin=0.01, unit="header", guardrails=("errors",), ranges=(Range("y", 0.0),)
    )
    assert release_policy(app, "other", {}) == Policy()
    assert model_settings(app, "iris", ModelSettings()).queue_rows == 5
    assert release_policy(app, "iris", {"margin": Policy().margin, "budget": Policy().budget}).budget == 50.0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("budget = 0", "budget 0 of a release: want 1"),
        ("budgets = 3", "unknown budgets; known: budget, margin"),
        ("unit = 'user'", "release.*unit 'user' of a release: want none, header, or json:FIELD"),
        ("shadow = 2", "shadow 2 of a release: want 0 to 1"),
        ("ranges = [{output = 'y', least = 2, greatest = 1}]", "holds no number"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_where_the_file_is_read(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_app(f"[models.iris.release]\n{line}")


def test_a_rule_that_is_wrong_is_not_laid_at_the_file_s_door() -> None:
    with pytest.raises(ConfigError) as caught:
        release_policy(parse_app(""), "iris", {"budget": "many"})
    assert "app.toml" not in caught.value.message
