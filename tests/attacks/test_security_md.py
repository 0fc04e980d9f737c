"""SECURITY.md's tables and the tests name each other: no row without its test, no attack without its row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

HERE = Path(__file__).parent
COLUMNS = ["attacker", "ability", "what they get", "what stops them", "test"]
NAMED = re.compile(r"^`(tests/[\w/]+\.py)::(test_\w+)`$")


def rows() -> list[list[str]]:
    """The rows of the tables of threats, cell by cell."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tables = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    found: list[list[str]] = []
    within = False
    for cells in tables:
        if cells == COLUMNS or len(cells) != len(COLUMNS):
            within = cells == COLUMNS
        elif within and not set(cells[0]) <= set("-"):
            found.append(cells)
    return found


def named() -> set[tuple[str, str]]:
    """File and name of every test in the tables."""
    matches = [NAMED.match(row[-1]) for row in rows()]
    assert all(matches), [row for row, match in zip(rows(), matches, strict=True) if not match]
    return {(match[1], match[2]) for match in matches if match}


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_names_a_test_that_is_there() -> None:
    files = {path: functions(ROOT / path) for path, _ in named()}
    assert {(path, name) for path, name in named() if name not in files[path]} == set()


def test_every_attack_is_in_the_table() -> None:
    attacks = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in HERE.glob("test_*.py")
        if path.name != Path(__file__).name
        for name in functions(path)
    }
    assert attacks
    assert attacks - named() == set()


def test_every_cell_says_something() -> None:
    assert len(rows()) >= len(named()) > 60
    assert [row for row in rows() if not all(row)] == []
