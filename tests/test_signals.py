"""Signals and streams: whatever the command is doing, it ends at once, in one line; nobody has to read it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_adapters import write_adapter
from patience import without_progress

import lazysd
import lazysd.checking

# Runs the command with a step that takes long; says on a pipe when it is there.
CHILD = """
import os, sys, time
sys.argv[0] = "lazysd"
where, ready = sys.argv.pop(1), int(sys.argv.pop(1))
def wait(*args, **kwargs):
    os.write(ready, b"x")
    until = time.monotonic() + 3600
    while time.monotonic() < until:
        try: time.sleep(0.01)
        except BaseException:
            if not where.startswith("swallowed"): raise
from lazysd.cli import entry
if where == "opening":
    from lazysd.cli import convert
    convert.opened = wait
if where in ("starting", "import"):
    import importlib.abc
    class Slow(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == ("torch" if where == "import" else "lazysd.checkpoint"): wait()
    sys.meta_path.insert(0, Slow())
if where in ("working", "swallowed"):
    import lazysd.save.run as run
    finish = run.OutputFolder.finish_shard
    def slow(self, *args):
        finish(self, *args)
        if len(self.finished) == 2: wait()
    run.OutputFolder.finish_shard = slow
if where == "committed":
    from lazysd.stores.placing import Place
    Place._is_lasting = wait
if where == "printed":
    import atexit
    atexit.register(wait)
entry.run()
"""


def command(name: str, src: Path, out: Path) -> list[str]:
    """A conversion of `src`, or a merge of an adapter into it, of five shards or so."""
    if name == "convert":
        return ["convert", str(src), str(out), "--to", "nemo", "--max-shard-size", "20KB"]
    key, adapter = "model.layers.0.self_attn.q_proj.weight", out.parent / "adapter"
    rows, columns = lazysd.open(src)[key].shape
    pair = {"lora_A": torch.ones(1, columns), "lora_B": torch.ones(rows, 1)}
    factors = {f"base_model.model.{key[:-6]}{word}.weight": factor for word, factor in pair.items()}
    write_adapter(adapter, factors, {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]})
    return ["merge", str(src), str(adapter), str(out), "--max-shard-size", "20KB"]


def child(where: str, number: int, args: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal in a step of an hour."""
    hear, tell = os.pipe()
    args = [*args, "--workers", "1"]
    args += ["--dtype", "f64"] if where == "import" else []  # casts between other types do without torch
    running = subprocess.Popen(
        [sys.executable, "-c", CHILD, where, str(tell), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[tell],
    )
    os.close(tell)
    assert os.read(hear, 1) == b"x", running.communicate()
    os.close(hear)
    running.send_signal(number)
    _, said = running.communicate(timeout=600)
    return running.returncode, re.sub(r"^lossy: .*\n", "", without_progress(said), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize(
    ("name", "where"),
    [
        *(("convert", where) for where in ("starting", "opening", "import", "working", "swallowed", "printed")),
        *(("merge", where) for where in ("working", "swallowed", "committed", "printed")),
    ],
)
def test_a_signal_ends_the_command_in_one_line(
    golden: Path, tmp_path: Path, name: str, where: str, number: signal.Signals, code: int, word: str
) -> None:
    out = tmp_path / "out"
    args = command(name, golden / "qwen3_moe_tiny", out)
    found, said = child(where, number, args)
    assert (found, said.count("\n")) == (code, 1), said
    assert said.startswith(f"lazysd: {word}; ")
    assert out.exists() == (where in ("committed", "printed"))
    if where == "working":
        assert re.search("2 of [56] shards kept", said)
    if where == "committed":
        assert said.endswith(f"{out} is complete\n")
    if where in ("working", "swallowed"):
        again = subprocess.run([sys.executable, "-m", "lazysd", *args], capture_output=True, text=True, check=True)
        assert "resuming at" in again.stderr
        assert re.search("2 of [56] shards kept", again.stderr)
    if out.exists():
        assert lazysd.open(out).layout == ("nemo" if name == "convert" else "hf")


@pytest.mark.parametrize("name", ["convert", "merge"])
@pytest.mark.parametrize(
    "closing", [">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full", "<&-", ">&- 2>&- <&-", "| true", "2> >(true)"]
)
def test_streams_that_take_nothing_are_no_failure(golden: Path, tmp_path: Path, closing: str, name: str) -> None:
    shutil.copytree(golden / "qwen3_moe_tiny", tmp_path / "src")
    words = [sys.executable, "-m", "lazysd", *command(name, tmp_path / "src", tmp_path / "out"), "--dtype", "f16", "-v"]
    run = ["bash", "-o", "pipefail", "-c", f"{shlex.join(words)} {closing}"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = lazysd.open(tmp_path / "out")
    if name == "convert":
        expected = lazysd.open(tmp_path / "src").convert("nemo").map(lambda t: t.half())
        assert set(saved) == set(expected)
        assert all(torch.equal(saved[key].materialize(), node.materialize()) for key, node in expected.items())
    assert lazysd.checking.check_folder(tmp_path / "out").sound
    again = subprocess.run(run, capture_output=True, text=True)
    assert again.returncode == 4  # it exists; nothing of a message went to stdout
    assert again.stdout == ""


def test_closed_streams_are_given_to_no_other_file(tmp_path: Path) -> None:
    """What is printed to a descriptor that a shard has been given stands in the shard."""
    code = f"""
import atexit, os, sys
os.closerange(0, 3)
sys.argv = ["lazysd", "layouts"]
def note():
    found = [os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)]
    with open({str(tmp_path / "fds")!r}, "w") as file:
        file.write(" ".join(found))
atexit.register(note)
from lazysd.cli import entry
entry.run()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "fds").read_text().split() == ["/dev/null"] * 3


def test_a_log_gets_lines_and_a_short_run_none(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lazysd.save import progress

    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # imported by somebody, but no kernel runs here
    source = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo")
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
    source.save(tmp_path / "short", progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    source.save(tmp_path / "long", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("save: ") and "/s, " in line for line in lines)
    assert lines[-1].startswith("save: 100% of ")


def test_a_command_calls_its_progress_what_was_typed(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lazysd.cli.main import main
    from lazysd.save import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    base, adapter = str(golden / "qwen3_moe_tiny"), str(golden / "peft_paramwrapper_r3")
    for words, labels in (
        (["convert", base, str(tmp_path / "nemo"), "--to", "nemo", "--verify"], ["convert", "verify"]),
        (["merge", base, adapter, str(tmp_path / "merged")], ["merge"]),
        (["verify", str(tmp_path / "nemo")], ["verify"]),
        (["verify", str(tmp_path / "nemo"), "--against", base], ["verify"]),
        (["stats", base], ["stats"]),
        (["diff", base, str(tmp_path / "nemo")], ["diff"]),
    ):
        assert main(words) == 0, words
        lines = [line.split(": ")[0] for line in capsys.readouterr().err.splitlines() if "/s, " in line]
        assert list(dict.fromkeys(lines)) == labels, words
        again = ["--overwrite"] if words[0] in ("convert", "merge") else []
        assert main([*words, *again, "--no-progress"]) == 0
        assert "/s, " not in capsys.readouterr().err


def test_the_rate_is_that_of_this_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lazysd.save import progress

    now = iter([0.0, 100.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.reporter(True, "convert") as report:
        report.remark("resuming at 90 %: 9 of 10 shards kept")  # type: ignore[attr-defined]
        report(900, 1000)
        report(1000, 1000)
    assert capsys.readouterr().err.splitlines()[-1] == "convert: 100% of 1.0 kB, 10 B/s, 0:00 left"
