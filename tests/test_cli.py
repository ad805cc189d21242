"""The command line as a user runs it: streams, exit codes, JSON, and no torch where none is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import without_progress
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.cli.main import COMMANDS, build_parser, main


@pytest.fixture
def src(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    return tmp_path / "src"


def shell(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command's outcome, less the lines of progress that a slow machine lets it print."""
    done = subprocess.run(
        [sys.executable, "-m", "lazysd", *map(str, args)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **env},
    )
    done.stderr = without_progress(done.stderr)
    return done


def test_there_and_back_through_the_shell(src: Path, tmp_path: Path) -> None:
    there = shell("convert", src, tmp_path / "nemo", "--to", "nemo", "--max-shard-size", "20KB")
    assert (there.returncode, there.stderr) == (0, "")  # no bar where stderr is no terminal
    assert "layout nemo" in there.stdout
    assert shell("convert", tmp_path / "nemo", tmp_path / "back", "--to", "hf", "-q").returncode == 0
    before, after = lazysd.open(src), lazysd.open(tmp_path / "back")
    assert set(before) == set(after)
    assert all(torch.equal(before[key].materialize(), after[key].materialize()) for key in before)
    verified = shell("verify", tmp_path / "nemo", "--against", src)
    assert verified.returncode == 0
    assert verified.stdout.startswith("verified:")


@pytest.mark.parametrize(
    "args", [["--help"], ["convert", "--help"], ["inspect", "{src}"], ["plan", "{src}", "--to", "nemo"]]
)
def test_no_torch_where_none_is_needed(src: Path, args: list[str]) -> None:
    words = [word.format(src=src) for word in args]
    code = (
        "import sys\nfrom lazysd.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_inspect(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(src)]) == 0
    out = capsys.readouterr().out
    assert "layout   hf (qwen3_moe)" in out
    assert "mlp.experts.{0-5}.gate_proj.weight" in out
    assert main(["inspect", str(src), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tensors"] == 57
    [(file, offset, nbytes)] = lazysd.open(src)["lm_head.weight"].reads()
    entry = {"dtype": "BF16", "shape": [64, 32], "nbytes": nbytes, "file": file, "offset": offset}
    assert data["keys"]["lm_head.weight"] == entry


def test_plan_and_dry_run_write_nothing(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(src), "--to", "nemo", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["read_nbytes"] == plan["tensor_nbytes"] == lazysd.open(src).nbytes
    assert plan["lossy"] == []
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "nemo", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_narrowing_cast_is_labelled_lossy(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(src), str(tmp_path / "wide"), "--to", "nemo", "--dtype", "f32"]) == 0
    assert "lossy" not in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "wide"), str(tmp_path / "half"), "--to", "hf", "--dtype", "f16"]) == 0
    assert "lossy: cast f32 -> f16 (57 tensors)" in capsys.readouterr().err
    saved, before = lazysd.open(tmp_path / "half"), lazysd.open(src)
    assert all(torch.equal(saved[key].materialize(), before[key].materialize().float().half()) for key in before)


def test_verify_and_diff_find_one_changed_bit(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(src), str(tmp_path / "nemo"), "--to", "nemo"]) == 0
    shard = tmp_path / "nemo" / "model.safetensors"
    tensors = load_file(shard)
    key = "model.layers.1.mlp.experts.down_projs"
    tensors[key].view(torch.int16)[4, 3, 2] ^= 1
    save_file(tensors, shard)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "nemo"), "--against", str(src)]) == 1
    assert f"{key}: values: 1 of 4608 elements differ; the first at [4, 3, 2]" in capsys.readouterr().out
    assert main(["diff", str(src), str(tmp_path / "nemo"), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert found["key"] == "model.layers.1.mlp.experts.4.down_proj.weight"
    assert found["position"] == [2, 3]


def test_diff_of_keys_shapes_and_dtypes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    save_file(ours, tmp_path / "1.safetensors")
    save_file(ours | {"b": torch.zeros(4), "c": ours["c"].half(), "d": torch.zeros(1)}, tmp_path / "2.safetensors")
    assert main(["diff", str(tmp_path / "1.safetensors"), str(tmp_path / "2.safetensors"), "--json"]) == 1
    found = {d["key"]: d["kind"] for d in json.loads(capsys.readouterr().out)["differences"]}
    assert found == {"b": "shape", "c": "dtype", "d": "missing"}
    assert main(["diff", str(tmp_path / "1.safetensors"), str(tmp_path / "1.safetensors")]) == 0


def test_show_a_slice_of_another_layout(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.layers.0.mlp.experts.gate_and_up_projs"
    assert main(["show", str(src), key, "--to", "nemo", "--slice", "3, :2, ::8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    expected = lazysd.open(src).convert("nemo")[key].materialize()[3, :2, ::8]
    assert data["values"] == expected.tolist()
    assert sum(read["nbytes"] for read in data["reads"]) <= 2 * 24 * 32 * 2


def test_include_and_exclude(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(["convert", str(src), str(out), "--to", "nemo", "--include", "*.experts.*", "--exclude", "*layers.1.*"])
        == 0
    )
    assert set(lazysd.open(out)) == {
        f"model.layers.0.mlp.experts.{name}" for name in ("gate_and_up_projs", "down_projs")
    }


CASES = [
    (2, ["convert", "{src}"], "lazysd convert: the following arguments are required: DST; see `lazysd convert"),
    (2, ["convert", "{src}", "{out}", "--to", "nemo", "--workers", "0"], "not a whole number of at least 1"),
    (2, ["conver"], "did you mean 'convert'?; see `lazysd --help`"),
    (2, ["convert", "{src}", "{out}", "--overwite"], "did you mean '--overwrite'?"),
    (3, ["inspect", ""], "the path is empty"),
    (2, ["convert", "{src}", "{out}", "--to", "nemo", "--max-memory", "lots"], "cannot read 'lots' as a size"),
    (2, ["convert", "{src}", "{out}", "--to", "nemo", "--max-memory", "1MB"], "smallest that would do"),
    (3, ["convert", "{src}", "{out}", "--to", "nonsense"], "no layout 'nonsense'"),
    (3, ["convert", "{src}/none", "{out}", "--to", "nemo"], "none"),
    (3, ["show", "{src}", "model.norm.weigt"], "did you mean 'model.norm.weight'"),
    (3, ["inspect", "{src}/config.json"], "config.json"),
    (4, ["convert", "{src}", "{src}", "--to", "nemo", "--overwrite"], "source"),
    (4, ["convert", "{src}", "{src}/inside", "--to", "nemo"], "inside the source"),
    (4, ["convert", "{src}", "/proc/lazysd/out", "--to", "nemo"], "cannot write"),
]


@pytest.mark.parametrize(("code", "args", "message"), CASES)
def test_exit_codes_and_one_line_errors(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, args: list[str], message: str
) -> None:
    words = [word.format(src=src, out=tmp_path / "out") for word in args]
    try:
        found: object = main(words)
    except SystemExit as stop:  # argparse, for usage
        found = stop.code
    assert found == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_existing_destination_and_debug(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "nemo"]) == 0
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "hf"]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "hf", "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lazysd.Checkpoint, "save", interrupt)
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "nemo"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_control_characters_of_a_file_never_reach_the_terminal(tmp_path: Path) -> None:
    save_file({"evil\x1b[31m\nkey": torch.zeros(1)}, tmp_path / "evil.safetensors")
    for args in (["inspect"], ["inspect", "--keys"]):
        done = shell(*args, tmp_path / "evil.safetensors")
        assert done.returncode == 0
        assert "\x1b" not in done.stdout


def test_a_closed_pipe_is_no_error(src: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m lazysd inspect {src} --keys | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_every_command_has_help() -> None:
    actions = [action for action in build_parser()._actions if hasattr(action, "choices") and action.choices]
    (commands,) = (action.choices for action in actions)
    assert len(commands) == len(COMMANDS)
    for name, command in commands.items():
        assert command.description, name
        assert f"\nExamples:\n  lazysd {name} " in command.description or name in ("layouts",), name
        for action in command._actions:
            assert action.help, (name, action.dest)


@pytest.mark.parametrize("path", ["précieux 数据", "not utf-8 \udcff"])
@pytest.mark.parametrize(
    "env", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["utf-8", "C"]
)
def test_paths_of_any_spelling(src: Path, tmp_path: Path, path: str, env: dict[str, str]) -> None:
    here = tmp_path / path
    src.rename(here)
    out = tmp_path / (path + " out")
    done = shell("convert", here, out, "--to", "nemo", "--verify", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert shell("inspect", out, **env).returncode == 0
    again = shell("convert", here, out, "--to", "nemo", **env)
    assert (again.returncode, again.stderr.count("\n")) == (4, 1)


def test_overwrite_replaces_checkpoints_only(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious, file = tmp_path / "precious", tmp_path / "file"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    file.write_text("mine")
    for dst, reason in ((precious, "holds no checkpoint"), (file, "is no folder")):
        assert main(["convert", str(src), str(dst), "--to", "nemo", "--overwrite"]) == 4
        assert reason in capsys.readouterr().err
    assert [path.read_text() for path in (precious / "thesis.txt", file)] == ["years of work", "mine"]
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "nemo"]) == 0
    assert main(["convert", str(src), str(tmp_path / "out"), "--to", "hf-fused", "--overwrite"]) == 0
    assert lazysd.open(tmp_path / "out").layout == "hf-fused"


def test_values_that_json_lacks_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.tensor([[1.5, float("nan")], [float("inf"), -float("inf")]])}, tmp_path / "x.safetensors")
    assert main(["show", str(tmp_path / "x.safetensors"), "x", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["values"] == [[1.5, "nan"], ["inf", "-inf"]]


def test_a_stdout_that_takes_nothing(src: Path) -> None:
    command = f"{sys.executable} -m lazysd inspect {src}"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True)
    assert (full.returncode, full.stderr) == (4, "lazysd: No space left on device\n")
    closed = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_errors_of_the_system_are_words(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(src), "/proc/lazysd/out", "--to", "nemo"]) == 4
    assert "Errno" not in capsys.readouterr().err
