"""The policy of a release: what it refuses, and who sticks to a version by it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.policy import Policy


@pytest.mark.parametrize(
    ("unit", "is_sticky", "field"),
    [("none", False, None), ("header", True, None), ("json:user", True, "user"), ("json:a:b", True, "a:b")],
)
def test_the_unit_is_nobody_a_header_or_a_field(unit: str, is_sticky: bool, field: str | None) -> None:
    policy = msgspec.json.decode(msgspec.json.encode(Policy(unit=unit)), type=Policy)
    assert (policy.is_sticky, policy.unit_field) == (is_sticky, field)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_other_unit_is_refused(text: str) -> None:
    for unit in (text, f"json:{text}"):
        try:
            policy = Policy(unit=unit)
        except ConfigError as error:
            assert "want none, header, or json:FIELD" in error.message
        else:
            assert unit in ("none", "header") or policy.unit_field
