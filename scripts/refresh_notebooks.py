"""Run the notebooks and store them with what their cells print, draw and show.

python scripts/refresh_notebooks.py [NAME ...]
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
VARIES = "varies"  # tag of cells whose outputs differ from run to run; which kinds of outputs they have must not
MASKS = (
    (re.compile(r"0x[0-9a-f]{6,}"), "0x…"),  # addresses
    (re.compile(r"\d+ workers?\b"), "workers"),  # as many as there are CPUs
    (re.compile(r"\d[\d,.]* [kMG]B projected|\d[\d,.]* [kMG]B would do"), "…"),  # follow from them
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")


@contextmanager
def kernel_home(home: Path) -> Iterator[None]:
    """A kernel "python3" that is this interpreter, and a place below `home` for everything that Jupyter writes.

    Without it a kernel of that name in the user's home, which may be another Python, would be found first.
    """
    kernel = home / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    changes = {"JUPYTER_PATH": str(home / "jupyter"), "PYTHONHASHSEED": "0", "COLUMNS": "100"}
    changes["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        (home / name).mkdir()
        changes[name] = str(home / name)
    with mock.patch.dict(os.environ, changes):
        for name in ("MPLBACKEND", "PYTHONWARNINGS"):
            os.environ.pop(name, None)
        yield


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells, started in `folder`; a cell that raises fails with its traceback."""
    where = {"metadata": {"path": str(folder)}}
    # One output a stream: the kernel sends what is printed by the clock, in as many pieces as the machine is slow.
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where, coalesce_streams=True)
    done: NotebookNode = client.execute()
    return done


def stored_form(done: NotebookNode) -> NotebookNode:
    """A notebook that has run, as it is kept: counts from 1, no times, no editor state."""
    done.metadata.language_info = {"name": "python"}
    count = 0
    for cell in done.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = {}
            if output.output_type == "execute_result":
                output.execution_count = count
    return done


def comparable(cell: NotebookNode) -> list[Any]:
    """What two runs of a cell on any two machines have in common; pictures count as pictures."""
    found: list[Any] = []
    for output in cell.outputs:
        data = output.get("data") or {output.get("name", output.output_type): output.get("text", "")}
        texts = {kind: "…" if kind.startswith("image/") else masked(text) for kind, text in data.items()}
        found.append((output.output_type, sorted(texts) if VARIES in cell.metadata.get("tags", ()) else texts))
    return found


def masked(text: str) -> str:
    """Text without what differs between machines; fractions to three digits, as sums round differently."""
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    return NUMBER.sub(lambda found: f"{float(found.group()):.3g}", text)


def stale_cells(stored: NotebookNode, done: NotebookNode) -> list[str]:
    """Cells whose stored outputs are not what they give now: id, and the first output that differs on both sides."""
    found = []
    for old, new in zip_longest(stored.cells, done.cells):
        if old is None or new is None or (old.id, old.source) != (new.id, new.source):
            return [*found, f"{(old or new).id}: the cells are not the same"]
        if old.cell_type != "code":
            continue
        for was, now in zip_longest(comparable(old), comparable(new)):
            if was != now:
                found.append(f"{old.id}: stored {was!r}, now {now!r}")
                break
    return found


def main(names: list[str]) -> None:
    """Refresh the notebooks named, or all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and not any(name in path.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as home, kernel_home(Path(home)):
            (work := Path(home) / "cwd").mkdir()
            done = stored_form(execute(nbformat.read(path, nbformat.NO_CONVERT), work))
        path.write_text(nbformat.writes(done) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
