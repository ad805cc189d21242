"""The notebooks run from top to bottom, in this interpreter, and are stored with what they print, draw and show."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER.parent / "scripts"))
try:
    from refresh_notebooks import VARIES, execute, kernel_home, masked, stale_cells, stored_form
finally:
    sys.path.pop(0)

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
REFRESH = "run: python scripts/refresh_notebooks.py"
MAX_NBYTES = 200_000  # of a stored notebook
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for everything that Jupyter and the notebook write; "cwd" in it is where the kernel starts."""
    (tmp_path / "cwd").mkdir()
    with kernel_home(tmp_path):
        yield tmp_path


def stored(path: Path) -> NotebookNode:
    found: NotebookNode = nbformat.read(path, nbformat.NO_CONVERT)
    return found


def outputs_of(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    return ((cell.id, output) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
@each_notebook
def test_runs_and_shows_what_is_stored(path: Path, home: Path) -> None:
    before = stored(path)
    done = execute(copy.deepcopy(before), home / "cwd")
    assert [(name, output.text) for name, output in outputs_of(done) if output.get("name") == "stderr"] == []
    left = [file for folder in ("cwd", "TMPDIR") for file in (home / folder).iterdir()]
    assert [file.name for file in left if not file.name.startswith("torchinductor")] == []  # torch keeps its cache
    assert stale_cells(before, stored_form(done)) == [], REFRESH


def test_kernel_is_this_interpreter(home: Path) -> None:
    cell = new_code_cell("import sys\nprint(sys.executable, sys.prefix)")
    done = execute(new_notebook(cells=[cell]), home / "cwd")
    assert done.cells[0].outputs[0].text.split() == [sys.executable, sys.prefix]
    with pytest.raises(CellExecutionError, match=r"six = 1 / 0(.|\n)*ZeroDivisionError"):
        execute(new_notebook(cells=[new_code_cell("six = 1 / 0")]), home / "cwd")


def test_there_are_notebooks() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01-", "02-", "03-", "04-", "05-"]


@each_notebook
def test_stored_clean(path: Path) -> None:
    """With outputs, counted from 1, and nothing of the machine or the editor."""
    notebook = stored(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), REFRESH
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 3
    assert [cell.id for cell in notebook.cells if cell.metadata not in ({}, {"tags": [VARIES]})] == []
    assert [name for name, output in outputs_of(notebook) if output.output_type == "error"] == []
    text = path.read_text(encoding="utf-8")
    assert text == nbformat.writes(notebook) + "\n"
    assert len(text) < MAX_NBYTES
    shown = json.dumps([output for _, output in outputs_of(notebook) if "image/png" not in output.get("data", {})])
    assert re.findall(r"(?<![\w.<])/(?:tmp|home|root|usr|work|Users|opt|var)/[^\s\"']*|[A-Z]:\\\\\\\\", shown) == []


def test_stale_outputs_are_noticed() -> None:
    """Another number, text, kind of output or cell; not another machine's address, rounding or number of workers."""
    before = stored(FOLDER / "01-open-and-look.ipynb")
    assert stale_cells(before, before) == []
    code = [k for k, cell in enumerate(before.cells) if cell.get("outputs")]
    for k in code:
        after = copy.deepcopy(before)
        after.cells[k].outputs[-1] = nbformat.v4.new_output("stream", text="something else")
        (said,) = stale_cells(before, after)
        assert said.startswith(f"{before.cells[k].id}: ")
        after.cells[k].outputs = []
        assert len(stale_cells(before, after)) == 1
    after = copy.deepcopy(before)
    after.cells[code[0]].source += "\n"
    assert len(stale_cells(before, after)) == 1
    del after.cells[-1]
    assert stale_cells(before, after)
    assert masked("<C at 0x7f12345678> 0.12345 of 2 workers") == masked("<C at 0x7fffff0000> 0.12349 of 16 workers")
    assert masked("0.123") != masked("0.124")
    assert masked("57 tensors") != masked("58 tensors")


def test_what_varies_is_compared_by_kind() -> None:
    first, second = (new_code_cell("x", id="a", metadata={"tags": [VARIES]}) for _ in range(2))
    first.outputs = [nbformat.v4.new_output("stream", text="1 s")]
    second.outputs = [nbformat.v4.new_output("stream", text="2 s")]
    assert stale_cells(new_notebook(cells=[first]), new_notebook(cells=[second])) == []
    second.outputs = []
    assert len(stale_cells(new_notebook(cells=[first]), new_notebook(cells=[second]))) == 1


@each_notebook
def test_cells_have_names(path: Path) -> None:
    """Ids are written by hand, so that a cell keeps its id in every diff."""
    names = [cell.id for cell in json.loads(path.read_text(encoding="utf-8"), object_hook=NotebookNode).cells]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)] == []


@each_notebook
def test_tells_a_story(path: Path) -> None:
    cells = stored(path).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert sum(cell.cell_type == "markdown" for cell in cells) > len(cells) / 3
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]
    assert [link for link in links if not (FOLDER / re.sub(r"\s+", " ", link)).exists()] == []


@each_notebook
def test_needs_no_machine_and_no_network(path: Path) -> None:
    text = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "code")
    absolute = re.findall(r"(?<![\w.}/>])/[A-Za-z_][\w.-]*/[\w./{}-]*|\b[A-Z]:\\", text)
    assert [found for found in absolute if not found.startswith("/proc/")] == []
    assert re.findall(r"https?://|hf_hub|pip install", text) == []
    places = re.findall(r"from_pretrained\((?:\w+\(\), )?\"([^\"]*)\"", text)
    assert len(places) == text.count("from_pretrained")
    assert [place for place in places if "/" in place] == []  # a folder that the notebook made
