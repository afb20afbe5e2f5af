"""Decides what of a Markdown file is to be run: each fenced block, in order, as a command, or not and why.

bash and python blocks run as they stand, each in a process of its own. In a console block the lines after
"$ " run, and the lines between them must come out in that order ("..." matches anything). A block whose lines
all call make only names targets. A block under `<!-- not run: REASON -->` is left out.
"""

import re
from dataclasses import dataclass

RUN = {"bash", "console", "python"}
# Blocks that a reader does not run. Any other word, or none, is refused: it would hide a block from us.
SHOWN = {"text", "json", "yaml", "toml", "mermaid", "http", "dockerfile", "ini", "promql"}

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\s*$")
NOT_RUN = re.compile(r"^\s*<!-- not run:(?P<reason>.*)-->\s*$")
MAKE = re.compile(
    r"^(?:[A-Z_]+=\S+ +)*make(?: +[A-Z_]+=\S+)* +(?P<target>[a-z]+)(?: +[A-Z_]+=\S+)*(?: *#.*)?$"
)


class BadBlock(Exception):
    """A block that the tests could neither run nor leave out with a reason."""


@dataclass(frozen=True)
class Step:
    """One process to run: `argv`, and the lines that its output must hold in this order."""

    where: str
    argv: tuple[str, ...]
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What one file asks for: the processes in order, and the make targets that it names."""

    steps: tuple[Step, ...]
    targets: tuple[str, ...]


def plan(name: str, text: str) -> Plan:
    """Read the blocks of one Markdown file.

    Raises: BadBlock for an unclosed fence, an unknown language, a reason that is empty, or make between other
    commands.
    """
    steps: list[Step] = []
    targets: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        number += 1
        if opened is None:
            continue
        where = f"{name}:{number}"
        reason = NOT_RUN.match(lines[number - 2]) if number >= 2 else None
        body: list[str] = []
        while number < len(lines) and lines[number].strip() != "```":
            body.append(lines[number].removeprefix(opened["indent"]))
            number += 1
        if number == len(lines):
            raise BadBlock(f"{where}: this block is never closed")
        number += 1
        language = opened["language"]
        if language not in RUN | SHOWN:
            raise BadBlock(f"{where}: {language!r} is none of {sorted(RUN | SHOWN)}")
        if reason is not None:
            if not reason["reason"].strip():
                raise BadBlock(f"{where}: 'not run' without a reason")
        elif language == "bash" and any(re.match(r"(\w+=\S+ )*make\b", line) for line in body):
            targets += _targets(where, body)
        elif language == "bash":
            steps.append(Step(where, ("bash", "-euo", "pipefail", "-c", "\n".join(body))))
        elif language == "python":
            steps.append(Step(where, ("python", "-c", "\n".join(body))))
        elif language == "console":
            steps += _session(where, body)
    return Plan(tuple(steps), tuple(targets))


def missing(said: tuple[str, ...], output: str) -> str | None:
    """Return the first line of `said` that `output` does not hold in its turn; None when it holds all."""
    rest = iter(output.splitlines())
    for wanted in said:
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.rstrip().split("...")))
        if not any(pattern.fullmatch(line.rstrip()) for line in rest):
            return wanted
    return None


def _targets(where: str, body: list[str]) -> list[str]:
    found: list[str] = []
    for line in body:
        if not line.strip() or line.startswith("#"):
            continue
        called = MAKE.match(line.rstrip())
        if called is None:
            raise BadBlock(f"{where}: {line!r} stands in one block with make; split the block")
        found.append(called["target"])
    return found


def _session(where: str, body: list[str]) -> list[Step]:
    """Read a console block: '$ ' starts a command, '> ' goes on with it, all else is its output."""
    commands: list[tuple[list[str], list[str]]] = []
    for line in body:
        if line.startswith("$ "):
            commands.append(([line[2:]], []))
        elif not commands:
            raise BadBlock(f"{where}: {line!r} comes before the first '$ '")
        elif line.startswith("> ") and not commands[-1][1]:
            commands[-1][0].append(line[2:])
        elif line.strip() not in {"", "..."}:
            commands[-1][1].append(line)
    return [
        Step(where, ("bash", "-euo", "pipefail", "-c", "\n".join(command)), tuple(said))
        for command, said in commands
    ]
