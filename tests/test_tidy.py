"""The repository tests itself: which room may import which, how long things may be, living links.

The rules are DESIGN.md's (section 2, "Import rules") and docs/architecture.md repeats them for readers.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("wire", "agent", "converter", "fleet")
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500

# Standard library modules that do input or output, start threads or read clocks: not for PURE modules.
IMPURE = {
    "asyncio", "ctypes", "fcntl", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "resource", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess",
    "tempfile", "threading", "time", "urllib", "secrets", "uuid",
}  # fmt: skip

# In agent and fleet, names from PyPI appear only here: their edges. The worker is the agent's process
# that ends; its adapters hold the runtime. A delta's encoder is arithmetic on numpy's arrays.
EDGES = re.compile(
    r"agent/(adapters/|worker/|config\.py|cli(_\w+)?\.py)|fleet/(adapters/|api/|deltas/|reports/|migrations/|config\.py|cli(_\w+)?\.py|cli/)"
)

# Sandboxes the rule `only app builds adapters`: who may import a room's adapters.
BUILDERS = re.compile(r"(agent|fleet)/(app\.py|adapters/|worker/|cli(_\w+)?\.py|migrations/|api/)")


def sources(*rooms: str) -> list[Path]:
    return sorted(
        path
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if "migrations/versions" not in path.as_posix()
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path) -> set[str]:
    return {found.split(".")[0] for found in imports(ast.parse(path.read_text(encoding="utf-8")))}


def is_pure(path: Path) -> bool:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.startswith("PURE")


ALL = sources(*ROOMS, "shallop_client")


@pytest.mark.parametrize("path", sources("wire"), ids=name)
def test_wire_imports_the_standard_library_and_msgspec(path: Path) -> None:
    assert roots(path) <= {*sys.stdlib_module_names, "msgspec", "wire"}


@pytest.mark.parametrize("path", sources("shallop_client"), ids=name)
def test_the_client_stands_by_itself_on_python_3_9(path: Path) -> None:
    assert roots(path) <= {*sys.stdlib_module_names, "shallop_client"}
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize("room", ["agent", "converter", "fleet"])
def test_the_three_programs_do_not_import_one_another(room: str) -> None:
    others = {"agent", "converter", "fleet", "shallop_client"} - {room}
    guilty = {name(path): roots(path) & others for path in sources(room)}
    assert {k: v for k, v in guilty.items() if v} == {}


@pytest.mark.parametrize("path", [p for p in ALL if is_pure(p)], ids=name)
def test_a_pure_module_does_nothing(path: Path) -> None:
    assert roots(path) & IMPURE == set()
    assert roots(path) <= {*sys.stdlib_module_names, "msgspec", *ROOMS}


@pytest.mark.parametrize("path", [p for p in ALL if is_pure(p)], ids=name)
def test_a_pure_module_stands_on_pure_modules(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for found in imports(tree):
        candidate = ROOT / (found.replace(".", "/") + ".py")
        # A room's ports hold Protocols and the types that they speak of; a type is not an effect.
        if candidate.exists() and candidate.name != "ports.py" and not found.startswith("wire."):
            assert is_pure(candidate), f"{name(path)} is PURE and imports {found}, which is not"


def test_the_design_names_these_modules_pure() -> None:
    pure = {name(path) for path in ALL if is_pure(path)}
    assert {
        "agent/fetch.py", "agent/lifecycle.py", "agent/measure.py", "converter/candidates.py",
        "fleet/gates.py", "fleet/inventory.py", "fleet/rollout.py", "fleet/selection.py",
        "wire/sla.py", "wire/trust.py",
    } <= pure  # fmt: skip


@pytest.mark.parametrize("path", sources("agent", "fleet"), ids=name)
def test_names_from_pypi_stay_at_the_edges(path: Path) -> None:
    foreign = roots(path) - {*sys.stdlib_module_names, "msgspec", *ROOMS}
    assert not foreign or EDGES.match(name(path)), f"{name(path)} imports {sorted(foreign)}"


@pytest.mark.parametrize("path", sources("agent", "fleet"), ids=name)
def test_only_app_builds_adapters(path: Path) -> None:
    found = {i for i in imports(ast.parse(path.read_text(encoding="utf-8"))) if ".adapters" in i}
    assert not found or BUILDERS.match(name(path)), f"{name(path)} imports {sorted(found)}"


def test_importing_the_agent_loads_neither_numpy_nor_a_runtime() -> None:
    code = (
        "import sys, agent.app, agent.cli\n"
        "print(sorted({'numpy', 'onnxruntime', 'onnx', 'sqlalchemy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [*ALL, *sorted(ROOT.glob("bench/*.py"))], ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{name(path)} has no docstring"
    assert len(docstring) > 30


@pytest.mark.parametrize("path", [*ALL, *sorted(ROOT.glob("examples/**/*.py"))], ids=name)
def test_functions_and_files_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX, f"{name(path)} is longer than {FILE_LINES_MAX} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name(path)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_nothing_is_promised_instead_of_done(path: Path) -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|\bfor now\b|\bplaceholder\b")
    assert not words.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=name)
def test_links_in_the_docs_live(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (path.parent / target).exists(), f"{name(path)} links to {target}"


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_every_console_script_exists() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for module, function in re.findall(r'^shallop-\w+ = "([\w.]+):(\w+)"', project, flags=re.MULTILINE):
        path = ROOT / (module.replace(".", "/") + ".py")
        path = path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        names |= {t.id for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets
                  if isinstance(t, ast.Name)}  # fmt: skip
        assert function in names, f"{module} has no {function}"
