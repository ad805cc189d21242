"""The house: imports go downward only, files stay small, and importing lazysd costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lazysd"
MAX_LINES = 300

# Floors of the house, lowest first. A room may import from its own files and from lower floors, never from a neighbour.
FLOORS = [
    {"errors", "_version", "_lazily", "compiled", "doors", "moved"},
    {"arguments"},
    {"dtypes", "nearest", "sizes"},
    {"stores"},
    {"facts"},
    {"graph"},  # leaves refer to files
    {"formats"},
    {"move"},
    {"display"},
    {"reduction", "counting"},
    {"stats"},
    {"tensor"},
    {"layouts"},
    {"peft"},
    {"dialects"},
    {"families"},
    {"quant"},
    {"mesh"},
    {"save", "buffers"},
    {"comparison", "iterate", "load", "parameters"},
    {"measuring", "showing"},
    {"checkpoint"},
    {"casting", "conversion", "opening", "overview", "quantization", "checking", "renaming"},
    {"comparing", "etags", "merging"},
    {"nemo", "distributed"},
    {"adapters"},
    {"cli", "testing"},
    {"__main__"},
    {"__init__"},  # lazysd/__init__.py, the package as users see it
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRONT_DOORS = {"cli", "testing", "__main__"}  # these may use the package as a user does, through `import lazysd`


def is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` that can run: all but the bodies of `if TYPE_CHECKING`."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.orelse if isinstance(node, ast.If) and is_type_checking(node) else ast.iter_child_nodes(node))


def room_of(target: list[str]) -> str | None:
    """The room of a dotted target such as ["lazysd", "graph", "node"]; None outside lazysd."""
    if target[:1] != ["lazysd"]:
        return None
    # a name imported from the package itself is a room, or something __init__.py provides
    return target[1] if len(target) > 1 and target[1] in FLOOR else "__init__"


def imported_rooms(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of lazysd in a file, at the top or inside functions, by statement or by name."""
    folder = ["lazysd", *path.relative_to(package).parent.parts]
    for node in running_nodes(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            targets = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            level = len(name) - len(name.lstrip("."))
            base = folder[: len(folder) - level + 1] if level else []
            targets = [[*base, *name.lstrip(".").split(".")]]
        for target in targets:
            if room := room_of(target):
                yield node.lineno, room


def violations(package: Path) -> list[str]:
    """Every import that goes upward or sideways, as "file:line: room imports room"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).with_suffix("").parts[0]
        for line, room in imported_rooms(path, package):
            allowed = room == here or FLOOR[room] < FLOOR.get(here, -1) or (room == "__init__" and here in FRONT_DOORS)
            if not allowed:
                found.append(f"{path.relative_to(package.parent)}:{line}: {here} imports {room}")
    return found


def test_every_file_has_a_room() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(FLOOR), f"give {sorted(rooms - set(FLOOR))} a floor in {Path(__file__).name}"


def test_imports_go_downward() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("graph/node.py", "from ..stores import local", []),
        ("graph/node.py", "from lazysd.graph.ops import Op", []),
        ("graph/node.py", "from . import ops\nfrom .. import errors, dtypes", []),
        ("graph/node.py", "import torch\nfrom move import run", []),
        ("graph/node.py", "if TYPE_CHECKING:\n    from ..move import fill", []),
        ("cli/main.py", "import lazysd", []),
        ("__init__.py", "from .testing import x\nfrom .checkpoint import open", []),
        ("graph/node.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from ..move import fill", ["move"]),
        ("graph/node.py", "def f():\n    from ..move.fill import fill", ["move"]),
        ("graph/node.py", "def f():\n    import lazysd.checkpoint as c", ["checkpoint"]),
        ("graph/node.py", "importlib.import_module('..display.text', __package__)", ["display"]),
        ("graph/node.py", "from .. import open", ["__init__"]),
        ("graph/node.py", "import lazysd", ["__init__"]),
        ("graph/deep/er.py", "from ...layouts.rule import Rule", ["layouts"]),
        ("nemo/adapter.py", "from ..distributed import mesh", ["distributed"]),
        ("errors.py", "from .dtypes import DTYPES", ["dtypes"]),
    ],
)
def test_the_check_finds_upward_imports(tmp_path: Path, file: str, source: str, wrong: list[str]) -> None:
    path = tmp_path / "lazysd" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert [line.rsplit(" ", 1)[1] for line in violations(tmp_path / "lazysd")] == wrong


def test_files_fit_on_a_few_screens() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("module", ["lazysd", "lazysd.cli.main"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'safetensors'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [], f"import {module} must not import these: they cost seconds"


def test_the_engine_of_layouts_knows_nothing_of_adapters_and_quantisation() -> None:
    words = ("lora", "peft", "fp8", "dora", "adapter", "mxfp4")
    found = [
        f"{path.name}:{number}"
        for path in sorted((PACKAGE / "layouts").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").lower().splitlines(), 1)
        if any(word in line for word in words)
    ]
    assert found == []


def test_functions_fit_on_a_screen() -> None:
    """Bodies of 40 lines at most, docstrings not counted; ruff counts statements and branches."""
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
                if body and (body[-1].end_lineno or 0) - body[0].lineno >= 40:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert long == []
