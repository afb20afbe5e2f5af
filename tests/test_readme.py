"""Runs every block of README.md and docs/ in order, as a reader of that file would, in a home of its own, or
in that of the page which it goes on after."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_blocks import BadBlock, Plan, Step, missing, plan

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
README = FILES[0]
"""Its blocks make the registry, too; where others register, the empty tables are there."""
AFTER = re.compile(r"^<!-- after: (?P<page>\S+) -->$", re.MULTILINE)
"""In a page that goes on where another one ends: with its home, and what is registered there."""
TARGETS = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def chains() -> list[tuple[Path, ...]]:
    """The pages that run in one home, in order: one that follows no other, then those that follow it."""
    first: dict[Path, list[Path]] = {file: [file] for file in FILES}
    for file in FILES:
        if found := AFTER.search(file.read_text()):
            first[REPOSITORY / found["page"]].append(file)
            del first[file]
    return [tuple(files) for files in first.values()]


def name(chain: tuple[Path, ...]) -> str:
    return "+".join(str(file.relative_to(REPOSITORY)) for file in chain)


def run(wanted: Plan, folder: Path, environment: dict[str, str]) -> None:
    """Run the steps of one file in `folder` in order; fail on the first that fails or says otherwise."""
    for step in wanted.steps:
        # To a file, not a pipe: a node that a block leaves running would hold the pipe open.
        log = folder.parent / "block.log"
        with log.open("w") as out:
            done = subprocess.run(
                step.argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=240,
            )
        output = log.read_text()
        assert done.returncode == 0, f"{step.where} left with {done.returncode}:\n{output}"
        line = missing(step.said, output)
        assert line is None, f"{step.where} should have said {line!r}; it said:\n{output}"


@pytest.fixture
def reader(tmp_path: Path, interlock_home: Path) -> tuple[Path, dict[str, str]]:
    """A folder that looks like a fresh clone, which a block cannot spoil, and an environment."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for entry in REPOSITORY.iterdir():
        if not entry.name.startswith(".") and entry.name not in {"build", "dist"}:
            (clone / entry.name).symlink_to(entry)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "INTERLOCK_HOME": str(interlock_home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return clone, environment


def says(wanted: list[Plan], words: str) -> bool:
    return any(words in argument for one in wanted for step in one.steps for argument in step.argv)


@pytest.mark.server
@pytest.mark.beside
@pytest.mark.timeout(600)
@pytest.mark.parametrize("files", [pytest.param(chain, id=name(chain)) for chain in chains()])
def test_every_block_runs(
    files: tuple[Path, ...], reader: tuple[Path, dict[str, str]], request: pytest.FixtureRequest
) -> None:
    wanted = [plan(file.name, file.read_text()) for file in files]
    if README not in files and says(wanted, "register"):
        request.getfixturevalue("home_with_store")
    try:
        for one in wanted:
            run(one, *reader)
    finally:
        if says(wanted, "interlock up"):
            subprocess.run(["interlock", "down"], env=reader[1], capture_output=True, timeout=60)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_every_make_target_that_the_docs_name_exists(file: Path) -> None:
    assert set(plan(file.name, file.read_text()).targets) <= set(TARGETS)


def test_nodes_of_one_chain_alone_listen_on_the_usual_ports() -> None:
    taken = [chain for chain in chains() if says([plan(one.name, one.read_text()) for one in chain], ":8000")]
    assert [chain[0] for chain in taken] == [README], "they may run beside each other"


def test_blocks_run_in_order_in_one_folder(reader: tuple[Path, dict[str, str]]) -> None:
    text = (
        "```bash\necho 7 > number\n```\n"
        "- in a list\n\n  ```python\n  print(int(open('number').read()) + 1, file=open('next', 'w'))\n  ```\n"
        "```console\n$ cat next\n8\n$ echo 'took 12.5 ms' \\\n> ; echo end\ntook ... ms\nend\n```\n"
    )
    wanted = plan("x.md", text)
    assert len(wanted.steps) == 4
    run(wanted, *reader)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nfalse | true\n```\n",
        "```bash\nfalse\ntrue\n```\n",
        "```python\nraise SystemExit(3)\n```\n",
        "```console\n$ echo 8\n9\n```\n",
        "```console\n$ printf 'a\\nb\\n'\nb\na\n```\n",
    ],
)
def test_a_block_that_does_not_do_what_it_says_fails(text: str, reader: tuple[Path, dict[str, str]]) -> None:
    with pytest.raises(AssertionError, match=r"x\.md:1"):
        run(plan("x.md", text), *reader)


@pytest.mark.parametrize(
    "text",
    [
        "```\nls\n```\n",
        "```sh\nls\n```\n",
        "```bash\nls\n",
        "<!-- not run: -->\n```bash\nls\n```\n",
        "```bash\nmake demo\nls\n```\n",
        "```console\nls\n```\n",
    ],
)
def test_a_block_that_could_hide_from_the_tests_is_refused(text: str) -> None:
    with pytest.raises(BadBlock):
        plan("x.md", text)


def test_make_is_looked_up_and_a_reason_leaves_a_block_out() -> None:
    text = (
        "```bash\nmake demo          # three minutes\nKEEP=1 make demo\nmake test ARGS=-x\n```\n"
        "<!-- not run: needs a second machine -->\n```bash\nssh other\n```\n"
        '```json\n{"shown": true}\n```\n'
        "```bash\nls\n```\n"
    )
    wanted = plan("x.md", text)
    assert wanted.targets == ("demo", "demo", "test")
    assert wanted.steps == (Step("x.md:13", ("bash", "-euo", "pipefail", "-c", "ls")),)
