"""The notebooks run from top to bottom, in this interpreter, and are stored clean."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def kernel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for everything that Jupyter and the notebook write, and a kernel "python3" that is this interpreter.

    Without it a kernel of that name in the user's home, which may be another Python, would be found first.
    """
    home = tmp_path / "jupyter"
    kernel = home / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(home))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("MPLBACKEND", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def execute(notebook: NotebookNode, home: Path) -> NotebookNode:
    """Run all cells in an empty folder; a cell that raises fails with its traceback."""
    work = home / "cwd"
    work.mkdir()
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(work)}})
    done: NotebookNode = client.execute()
    assert list(work.iterdir()) == [], "the notebook left files in the folder it was started in"
    return done


def stored(path: Path) -> NotebookNode:
    found: NotebookNode = nbformat.read(path, nbformat.NO_CONVERT)
    return found


@pytest.mark.slow
@each_notebook
def test_runs(path: Path, kernel_home: Path) -> None:
    done = execute(stored(path), kernel_home)
    outputs = [(cell.id, output) for cell in done.cells for output in cell.get("outputs", [])]
    assert outputs
    complaints = [(name, output.text) for name, output in outputs if output.get("name") == "stderr"]
    assert complaints == []  # warnings count
    assert list((kernel_home / "TMPDIR").iterdir()) == [], "the notebook left its scratch folder behind"


def test_kernel_is_this_interpreter(kernel_home: Path) -> None:
    done = execute(new_notebook(cells=[new_code_cell("import sys\nprint(sys.executable, sys.prefix)")]), kernel_home)
    assert done.cells[0].outputs[0].text.split() == [sys.executable, sys.prefix]


def test_a_failing_cell_fails(kernel_home: Path) -> None:
    with pytest.raises(CellExecutionError, match=r"six = 1 / 0(.|\n)*ZeroDivisionError"):
        execute(new_notebook(cells=[new_code_cell("six = 1 / 0")]), kernel_home)


def test_there_are_notebooks() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01-", "02-", "03-"]


@each_notebook
def test_stored_clean(path: Path) -> None:
    """No outputs, no counts, no editor state: a diff shows what somebody wrote."""
    notebook = stored(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


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
    assert [link for link in links if not (FOLDER / link).exists()] == []


@each_notebook
def test_needs_no_machine_and_no_network(path: Path) -> None:
    text = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "code")
    absolute = re.findall(r"(?<![\w.}/>])/[A-Za-z_][\w.-]*/[\w./{}-]*|\b[A-Z]:\\", text)
    assert [found for found in absolute if not found.startswith("/proc/")] == []
    assert re.findall(r"https?://|from_pretrained|hf_hub|pip install", text) == []
