"""What systems limit: few descriptors, long names, disks that report nothing; and numbers that no machine has."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import bits, random_hf, write
from lora_adapters import write_adapter
from safetensors.torch import load_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import NoSpaceError

NUM_SHARDS, MOST_OPEN = 1000, 256
CONFIG = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 4, "moe_intermediate_size": 5}
UNKNOWN = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))

# Commands one after the other in a process that may have few descriptors; no disk is waited for.
CHILD = f"""
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({MOST_OPEN}, {MOST_OPEN}))
os.fsync = lambda fd: None
from lazysd.cli.main import main
codes = [main(command) for command in json.loads(sys.argv[1])]
sys.exit(0 if not any(codes) else f"{{codes}}")
"""


def test_a_thousand_shards_under_few_descriptors(tmp_path: Path) -> None:
    keys = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(NUM_SHARDS)]
    tensors = {key: torch.full((2, 2), float(number)) for number, key in enumerate(keys)}
    base = str(write(tmp_path / "base", tensors, NUM_SHARDS, {"model_type": "llama"}))
    pair = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
    factors = {f"base_model.model.{keys[7][:-6]}{word}.weight": factor for word, factor in pair.items()}
    said = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    adapter = str(write_adapter(tmp_path / "adapter", factors, said))
    out, merged = str(tmp_path / "out"), str(tmp_path / "merged")
    commands = [
        ["convert", base, out, "--max-shard-size", "1"],
        ["verify", out],
        ["diff", out, base],
        ["stats", out],
        ["merge", base, adapter, merged, "--max-shard-size", "1"],
    ]
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, changed in ((out, ()), (merged, (7,))):
        files = sorted(Path(folder).glob("*.safetensors"))
        assert len(files) == NUM_SHARDS
        found = {key: value for file in files for key, value in load_file(file).items()}
        assert all(torch.equal(found[key], tensors[key] + (number in changed)) for number, key in enumerate(keys))


@pytest.mark.parametrize("letter", ["n", "é", "模"])
@pytest.mark.parametrize("nbytes", [119, 121, 239, 240, 254, 255])
def test_names_as_long_as_the_system_takes(nbytes: int, letter: str, tmp_path: Path) -> None:
    """Of folders and files to read and to make, of side files, and of keys."""

    def named(end: str = "") -> str:
        left = nbytes - len(end)
        return letter * (left // len(letter.encode())) + "n" * (left % len(letter.encode())) + end

    tensors = {**random_hf(), named(): torch.ones(1)}
    source = write(tmp_path / named(), tensors, config=CONFIG)
    os.rename(source / "model.safetensors", source / named(".safetensors"))
    (source / named()).write_text("beside")
    (tmp_path / "made").mkdir()
    for name in (named(), named(".safetensors")):
        out = tmp_path / "made" / name
        for options in ([], ["--overwrite", "--verify"]):
            assert main(["convert", str(source), str(out), *options]) == 0
        file = out if out.is_file() else out / "model.safetensors"
        assert {key: bits(value).tolist() for key, value in load_file(file).items()} == {
            key: bits(value).tolist() for key, value in tensors.items()
        }
    assert (tmp_path / "made" / named() / named()).read_text() == "beside"
    assert sorted(os.listdir(tmp_path / "made")) == sorted({named(), named(".safetensors")})


@pytest.mark.parametrize("found", [UNKNOWN, OSError(errno.ENOSYS, "Function not implemented")])
def test_a_file_system_that_reports_nothing_is_not_full(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(path: Any) -> os.statvfs_result:
        if isinstance(found, OSError):
            raise found
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "statvfs", report)
    assert main(["convert", str(write(tmp_path / "source", random_hf())), str(tmp_path / "out")]) == 0


def test_a_file_system_without_a_free_block_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 10**6, 5, 0, 9, 9, 9, 0, 255)))
    ckpt = lazysd.open(write(tmp_path / "source", random_hf()))
    with pytest.raises(NoSpaceError, match="has 0 bytes free, the result needs"):
        ckpt.save(tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_files_that_take_no_block_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes, compressed and remote files have fewer blocks than bytes, or none."""
    source = write(tmp_path / "source", {"hole": torch.zeros(1 << 20)})
    with open(source / "model.safetensors", "rb+") as file:
        head = 8 + int.from_bytes(file.read(8), "little")
        file.truncate(head)
        file.truncate(head + (4 << 20))
    (source / "hole.bin.txt").touch()
    os.truncate(source / "hole.bin.txt", 3 << 20)
    assert (source / "hole.bin.txt").stat().st_blocks == 0
    lazysd.open(source).save(tmp_path / "out")
    for name in ("model.safetensors", "hole.bin.txt"):
        assert (tmp_path / "out" / name).read_bytes()[-(3 << 20) :] == (source / name).read_bytes()[-(3 << 20) :]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["hole"], torch.zeros(1 << 20))


@pytest.mark.parametrize("number", [1, 65, 10**6, 10**30])
def test_any_number_of_workers(number: int, tmp_path: Path) -> None:
    source, out = str(write(tmp_path / "source", random_hf(), config=CONFIG)), str(tmp_path / "out")
    workers = ["--workers", str(number)]
    for command in (["plan", source, "--to", "nemo"], ["convert", source, out, "--to", "nemo"], ["verify", out]):
        assert main([*command, *workers]) == 0
    for command in (["verify", out, "--against", source], ["diff", source, source], ["stats", out]):
        assert main([*command, *workers]) == 0
    with lazysd.open(source) as ckpt:
        assert ckpt.plan(workers=number).workers <= 64
