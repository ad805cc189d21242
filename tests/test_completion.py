"""Shell completion, and errors in the words of the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lazysd.cli.main import main
from lazysd.cli.wording import in_options


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "lazysd.bash"
    done = subprocess.run(
        [sys.executable, "-m", "lazysd", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path.write_text(done.stdout)
    return path


def offered(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    line = f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; "
    line += 'COMP_LINE="${COMP_WORDS[*]}"; _shtab_lazysd lazysd; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=script.parent)
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_commands_options_layouts_families_and_paths(script: Path) -> None:
    assert offered(script, "lazysd", "conv") == ["convert"]
    assert "--max-memory" in offered(script, "lazysd", "convert", "--max")
    assert {"nemo", "hf-fused"} <= set(offered(script, "lazysd", "convert", "a", "b", "--to", ""))
    assert "qwen3_moe" in offered(script, "lazysd", "inspect", "--family", "qwen3")
    assert "bf16" in offered(script, "lazysd", "convert", "--dtype", "b")
    assert offered(script, "lazysd", "inspect", "lazysd.b") == ["lazysd.bash"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    assert "hf-fused" in capsys.readouterr().out


def script_for(shell: str) -> bytes:
    """What `lazysd completion` prints for a shell that is installed here."""
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    command = [sys.executable, "-m", "lazysd", "completion", shell]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_fish_completes() -> None:
    script = script_for("fish")
    for line, expected in (
        ("lazysd conv", "convert"),
        ("lazysd convert a b --to ne", "nemo"),
        ("lazysd layouts qwen3_moe", "qwen3_moe"),
        ("lazysd diff a b --sort cos", "cosine"),
    ):
        ask = ["fish", "--no-config", "-c", f"source -; complete -C '{line}'"]
        found = subprocess.run(ask, input=script, capture_output=True, check=True).stdout.decode()
        assert [row.split("\t")[0] for row in found.splitlines()][:1] == [expected], line


def test_zsh_takes_it_for_its_own() -> None:
    script = script_for("zsh")
    assert script.startswith(b"#compdef lazysd\n")
    assert subprocess.run(["zsh", "-f", "-n"], input=script, capture_output=True, check=True).stderr == b""


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'lazysd[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("out exists; pass overwrite=True (--overwrite)", "out exists; pass --overwrite"),
        ("state the family (family=, --family), if", "state the family (--family), if"),
        ('state one: config={"num_experts": …}, --num-experts', "state one: --num-experts"),
        ("state it, --from a or --from b (source= in Python)", "state it, --from a or --from b"),
        ("2 of 3 are missing; `x` (partial=True in Python) shows", "2 of 3 are missing; `x` shows"),
        ("max_memory 1.0 kB is too little", "--max-memory 1.0 kB is too little"),
        ("model.layers=3 (--x y) a=b", "model.layers=3 (--x y) a=b"),
    ],
)
def test_errors_speak_of_options(said: str, expected: str) -> None:
    assert in_options(said) == expected


def test_by_the_command(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "out")
    source = str(golden / "qwen3_moe_tiny")
    assert main(["convert", source, str(tmp_path / "out"), "--to", "nemo", "--no-progress"]) == 4
    assert "pass --overwrite" in (told := capsys.readouterr().err)
    assert "overwrite=True" not in told
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["convert", "a", "b", "--tp", "nemo"],
            "lazysd convert: unrecognized arguments: --tp nemo; did you mean '--to'?",
        ),
        (["plan", "a", "--stat"], "lazysd plan: unrecognized arguments: --stat; it is an option of diff;"),
        (["stats", "a", "b", "c"], "lazysd stats: unrecognized arguments: c; see `lazysd stats --help`"),
        (["--nothing"], "lazysd: the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_option_is_said_by_its_command(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.startswith(said)
