"""Reads the how-to of what registration refuses: the words that it has for each case of broken.py."""

import re
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "mend-a-refused-model.md"
_ROW = re.compile(r"\| (?P<name>[^|`]+) \| `(?P<said>[^|`]+)` \| [^|]+ \|")

Said = dict[str, tuple[str, ...]]
"""By case, the pieces of its message between what differs."""


def said_on_the_page(text: str | None = None) -> tuple[Said, Said]:
    """Of models, and of reference data.

    >>> said_on_the_page("| a | `b … c` | do |\\n## Reference data\\n| x | `y` | do |")
    ({'a': ('b', 'c')}, {'x': ('y',)})
    """
    models, _, rest = (FILE.read_text() if text is None else text).partition("## Reference data")
    return _rows(models), _rows(rest)


def _rows(text: str) -> Said:
    found: Said = {}
    for line in text.splitlines():
        if not line.startswith("| ") or line.startswith("| What |"):
            continue
        row = _ROW.fullmatch(line)
        assert row is not None, f"no row of a case, its words and a remedy: {line}"
        assert row["name"] not in found, f"{row['name']} is there twice"
        found[row["name"]] = tuple(piece.strip() for piece in row["said"].split("…"))
    return found
