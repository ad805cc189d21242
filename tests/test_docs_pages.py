"""Pages of docs/, one a job, run as they stand: each command and block of Python, in a folder with checkpoints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lazysd.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("low-memory", "notebook", "diff")
DIFFERS = ("lazysd diff base tuned",)  # commands that say so by their exit code


@pytest.fixture
def folder(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `base`, and `tuned`, in which one layer's expert moved."""
    import shutil

    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    for file in (tmp_path / "tuned").glob("*.safetensors"):
        tensors = {k: t + 0.5 if ".layers.1.mlp.experts.0." in k else t for k, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    ran = 0
    for kind, code in re.findall(r"^```(python|console)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if kind == "python":
            exec(compile(code, f"docs/{page}.md", "exec"), names)
            ran += 1
            continue
        for line in re.findall(r"^\$ lazysd (.*)$", code, flags=re.MULTILINE):
            differs = any(f"lazysd {line}".startswith(command) for command in DIFFERS)
            assert main(shlex.split(line, comments=True)) == (1 if differs else 0), line
            ran += 1
    assert ran >= 3
    said = capsys.readouterr()
    assert said.out
    if page == "diff":
        assert "layers.1" in said.out
    if page == "notebook":
        assert isinstance(names["row"].materialize(), torch.Tensor)


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"docs/{path.name}" not in readme] == []
