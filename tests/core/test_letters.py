"""Letters survive the wire, older and newer peers, and long homes."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import SchemaTooNew
from interlock.core.letters import (
    SCHEMA,
    Desired,
    ModelDesired,
    Report,
    VersionState,
    VersionStatus,
    decode_desired,
    decode_report,
    encode,
    executor_socket,
    letters_socket,
)
from interlock.core.model import Model, Signature, TensorSpec, Version
from interlock.core.route import Arm, Route, single

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def _version(model: str, number: str) -> Version:
    return Version(
        model=model,
        number=number,
        digest="sha256:" + "ab" * 32,
        runtime="onnx",
        entry="model.onnx",
        signature=Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "INT64", (-1,)),)),
        options={"threads": 1},
    )


@given(
    st.integers(0, 2**60),
    st.lists(st.tuples(NAMES, NAMES, st.booleans()), max_size=4),
)
def test_a_desired_comes_back_as_it_was(revision: int, models: list[tuple[str, str, bool]]) -> None:
    desired = Desired(
        node="n",
        revision=revision,
        models=tuple(
            ModelDesired(Model(name), (_version(name, number),), single(number, 7) if routed else None)
            for name, number, routed in models
        ),
    )
    line = encode(desired)
    assert b"\n" not in line
    assert decode_desired(line) == desired


@given(NAMES, st.sampled_from(VersionState), NAMES)
def test_a_report_comes_back_as_it_was(process: str, state: VersionState, reason: str) -> None:
    report = Report(
        node="n",
        process=process,
        incarnation=2**62,
        pid=1,
        seen_revision=3,
        revision=2,
        ready=True,
        versions=(VersionStatus("m", "1", "sha256:0", state, reason, 0.5),),
        quarantined={"m/1@0": reason},
    )
    line = encode(report)
    assert b"\n" not in line
    assert decode_report(line) == report


def test_fields_of_a_newer_peer_are_passed_over_and_missing_ones_of_an_older_peer_get_their_default() -> None:
    newer = msgspec.json.encode(
        {"node": "n", "revision": 4, "models": [], "schema": SCHEMA, "lease": {"a": 1}}
    )
    assert decode_desired(newer) == Desired("n", 4)
    older = msgspec.json.encode(
        {
            "node": "n",
            "process": "worker-0",
            "incarnation": 1,
            "pid": 2,
            "seen_revision": 0,
            "revision": 0,
            "ready": False,
        }
    )
    assert decode_report(older).quarantined == {}


@pytest.mark.parametrize("decode", [decode_desired, decode_report])
def test_a_newer_schema_is_refused_with_both_numbers(decode: object) -> None:
    assert callable(decode)
    letter = msgspec.json.encode(
        {
            "node": "n",
            "revision": 4,
            "schema": SCHEMA + 1,
            "process": "w",
            "incarnation": 1,
            "pid": 1,
            "seen_revision": 1,
            "ready": True,
        }
    )
    with pytest.raises(SchemaTooNew, match=f"schema {SCHEMA + 1}.*up to {SCHEMA}"):
        decode(letter)


def test_what_is_no_letter_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_desired(b"{}")
    with pytest.raises(msgspec.MsgspecError):
        decode_report(b"not json")


def test_sockets_stay_within_the_length_of_a_unix_path_and_differ_by_home_and_version(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    paths = {
        letters_socket(tmp_path),
        letters_socket(deep),
        letters_socket(tmp_path / ("e" * 120)),
        executor_socket(tmp_path, _version("m", "1")),
        executor_socket(tmp_path, _version("m", "2")),
        executor_socket(deep, _version("m", "1")),
    }
    assert len(paths) == 6
    assert all(len(str(path).encode()) <= 107 for path in paths)


def test_a_route_says_where_a_unit_is_and_one_from_before_it_could_is_read_still() -> None:
    arms = (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5))
    for route in (Route(7, 1, "s", arms, unit_field="user"), Route(7, 1, "s", arms)):
        line = encode(Desired("n", 1, (ModelDesired(Model("m"), (), route),)))
        (model,) = decode_desired(line).models
        assert model.route == route
    older = line.replace(b',"unit_field":null', b"")
    assert older != line and decode_desired(older) == decode_desired(line)
