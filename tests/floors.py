"""Decides which imports inside the package are allowed: down the floors only, never across one.

Pure: reads source text, runs none of it. tests/test_floors.py holds the tree to it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"core"}),
    frozenset({"sketch", "evidence", "codec", "runtime"}),
    frozenset({"serving", "registry", "features", "client"}),
    frozenset({"wire", "rollout", "monitor", "incident", "capacity", "review"}),
    frozenset({"operations"}),
    frozenset({"api", "cli", "console", "export", "app"}),
)
FLOOR_OF = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
# app is the only wiring: it alone reaches across its floor, to these, and nothing reaches it.
JOINED_BY_APP = frozenset({"api", "console", "export"})
PACKAGE = "interlock"
LONGEST_MODULE_LINES = 400
REASON_FOR_LENGTH = "lines because"


def violations(root: Path) -> list[str]:
    """Return one line for each import, file or folder under `root` that the house forbids.

    `root` is the package's own folder (src/interlock). Relative imports, those inside functions or under
    `TYPE_CHECKING`, and `import_module("interlock.x")` all count: each ties two folders together as well.
    """
    found: list[str] = []
    for file in sorted(root.rglob("*.py")):
        where = file.relative_to(root)
        folder = where.parts[0] if len(where.parts) > 1 else ""
        if folder == "" and where.name != "__init__.py":
            found.append(f"{where}: belongs to no folder; only __init__.py stands beside the floors")
            continue
        if folder and folder not in FLOOR_OF:
            found.append(f"{where}: folder {folder!r} is on no floor")
            continue
        for line, target in _targets(file.read_text(), where):
            if complaint := _complaint(folder, target):
                found.append(f"{where}:{line}: {complaint}")
    return list(dict.fromkeys(found))


@cache
def _docstring(text: str) -> str | None:
    return ast.get_docstring(ast.parse(text))


def untidy(root: Path) -> list[str]:
    """Return one line for each module under `root` with no docstring, or too long without a reason in it."""
    found: list[str] = []
    for file in sorted(root.rglob("*.py")):
        text, where = file.read_text(), file.relative_to(root)
        docstring = _docstring(text)
        length_lines = text.count("\n")
        if not docstring:
            found.append(f"{where}: no docstring that says what the module decides or owns")
        elif length_lines > LONGEST_MODULE_LINES and REASON_FOR_LENGTH not in " ".join(docstring.split()):
            found.append(
                f"{where}: {length_lines} lines, the limit is {LONGEST_MODULE_LINES}: "
                f"split it, or say in its docstring 'Past {LONGEST_MODULE_LINES} {REASON_FOR_LENGTH} ...'"
            )
    return found


def _complaint(folder: str, target: tuple[str, ...]) -> str | None:
    """Say what is wrong with a file of `folder` ("" = the package's own __init__) importing `target`."""
    if not target:
        return f"imports {PACKAGE!r} itself; import the module that you mean"
    other = target[0]
    dotted = ".".join((PACKAGE, *target))
    if folder == "":
        return f"imports {dotted} at once; the package's own file exports lazily, by name"
    if other.startswith("__") or other == folder or (folder == "app" and other in JOINED_BY_APP):
        return None
    if other not in FLOOR_OF:
        return f"imports {dotted}, which is on no floor"
    mine, theirs = FLOOR_OF[folder], FLOOR_OF[other]
    if theirs == mine:
        return f"imports {dotted} across floor {mine}; let them meet in core, and app join them"
    if theirs > mine:
        return f"imports {dotted}, up from floor {mine} to {theirs}"
    return None


@cache  # the tests read one tree many times, with one file more
def _targets(source: str, where: Path) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return (line, path inside the package) for each import of the package's own modules."""
    tree = ast.parse(source, str(where))
    if len(where.parts) == 1:  # what the package's own file names for type checkers alone, it does not import
        tree.body = [node for node in tree.body if not _is_for_types_only(node)]
    return tuple(_walk(tree, where))


def _walk(tree: ast.Module, where: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield from _inside(node.lineno, alias.name.split("."))
            case ast.ImportFrom(module=module, names=names, level=level):
                # a/b.py and a/__init__.py both lie in package `a`: drop the file, then level - 1 folders.
                above = [PACKAGE, *where.parts[:-1]]
                base = above[: len(above) - (level - 1)] if level else []
                path = base + (module.split(".") if module else [])
                for alias in names:
                    yield from _inside(node.lineno, [*path, alias.name] if path == [PACKAGE] else path)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(str(text)), *_]
            ):
                if called in {"import_module", "__import__"}:
                    yield from _inside(node.lineno, text.split("."))
            case _:
                pass


def _is_for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _inside(line: int, path: list[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    if path[:1] == [PACKAGE]:
        yield line, tuple(path[1:])
