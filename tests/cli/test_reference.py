"""The generated reference pages are what the code makes now."""

import importlib.util
from pathlib import Path


def test_the_generated_pages_are_up_to_date(repository: Path) -> None:
    folder = repository / "docs" / "reference"
    spec = importlib.util.spec_from_file_location("generate", folder / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    made = generate.pages()
    for name, text in made.items():
        assert (folder / name).read_text() == text, f"{name} is old: python docs/reference/generate.py"
    assert {page.name for page in folder.glob("*.md")} >= {*made, "metrics.md"}
