"""Holds that the how-to of what registration refuses has each case of broken.py, and no other.

That each is said in those words, test_broken_models.py holds.
"""

import pytest

from tests.operations.broken import CASES, DATA
from tests.operations.refusals import said_on_the_page


def test_each_broken_model_and_each_broken_data_are_on_the_page() -> None:
    models, data = said_on_the_page()
    assert sorted(models) == sorted(CASES)
    assert sorted(data) == sorted(DATA)
    pieces = [piece for said in (*models.values(), *data.values()) for piece in said]
    assert min(map(len, pieces)) >= 7, "a piece so short is in any message"


@pytest.mark.parametrize(
    "line", ["| a | no backticks | do |", "| a | `b` |", "| a | `b` | do |\n| a | `c` | do |"]
)
def test_a_row_that_the_test_cannot_read_fails(line: str) -> None:
    with pytest.raises(AssertionError):
        said_on_the_page(line)
