"""Bad input, one by one: its exception, a message with file, tensor and next step, its exit code, nothing at DST."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from checkpoints import expert_key, noise, random_hf, write

import lazysd
from lazysd import errors
from lazysd.cli.main import main

CONFIG = {"model_type": "qwen3_moe", "num_experts": 3}
Tensors = dict[str, torch.Tensor]


def damaged(
    change: Callable[[Tensors], Any], shards: int = 2, config: dict[str, Any] = CONFIG
) -> Callable[[Path], Path]:
    """A checkpoint of three experts after a change to its tensors."""

    def make(folder: Path) -> Path:
        tensors = random_hf(experts=3, hidden=4, inner=5)
        change(tensors)
        return write(folder / "src", tensors, shards, config)

    return make


def after(change: Callable[[Path], Any], shards: int = 2) -> Callable[[Path], Path]:
    """A good checkpoint after a change to its files."""

    def make(folder: Path) -> Path:
        src = damaged(lambda tensors: None, shards)(folder)
        change(src)
        return src

    return make


def first_shard(src: Path) -> Path:
    return sorted(src.glob("*.safetensors"))[0]


def cut_off(src: Path) -> None:
    os.truncate(first_shard(src), first_shard(src).stat().st_size - 3)


def pad(src: Path) -> None:
    with first_shard(src).open("ab") as file:
        file.write(b"12345")


def edit_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def edit(src: Path) -> None:
        path = src / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def key_in_two_shards(src: Path) -> None:
    """Both shards hold every tensor, and no index decides."""
    (src / "model.safetensors.index.json").unlink()
    one, two = sorted(src.glob("*.safetensors"))
    one.write_bytes(two.read_bytes())


def only_pickles(src: Path) -> None:
    for file in src.iterdir():
        file.unlink()
    torch.save({"weight": torch.zeros(2)}, src / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def pickle_in_disguise(src: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, first_shard(src))


def git_lfs_pointer(src: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3998893112\n"
    first_shard(src).write_text(text)


def both_prefixes(tensors: Tensors) -> None:
    """The experts once under model. and once without: two groups, one of them incomplete."""
    key = expert_key(1, "gate")
    tensors[key.removeprefix("model.")] = tensors.pop(key)


CASES: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "missing expert": (
        damaged(lambda t: t.pop(expert_key(1, "up"))),
        errors.MissingExpertsError,
        r"layers\.0\.mlp\.experts\.gate_and_up_projs needs 6 tensors .*1 missing: .*experts\.1\.up_proj\.weight; is a",
    ),
    "last expert missing, and a config that tells": (
        damaged(lambda t: [t.pop(expert_key(2, name)) for name in ("gate", "up", "down")]),
        errors.MissingExpertsError,
        r"down_projs needs 3 tensors \(e=3\), 1 missing: .*experts\.2\.down_proj\.weight; is a shard .* config\.json",
    ),
    "extra expert": (
        damaged(lambda t: t.update({expert_key(3, name): noise((5, 4)) for name in ("gate", "up")})),
        errors.LayoutError,
        r"experts\.3\.gate_proj\.weight, .*experts\.3\.up_proj\.weight: beyond the e=3 x g=2 that config\.json states",
    ),
    "unknown projection": (
        damaged(lambda t: t.update({expert_key(0, "gate").replace("gate_proj", "side_proj"): noise((5, 4))})),
        errors.LayoutError,
        r"experts\.0\.side_proj\.weight stands among .* no rule covers it; the result would lack",
    ),
    "bias of an expert": (
        damaged(lambda t: t.update({expert_key(0, "gate").replace("weight", "bias"): noise((5,))})),
        errors.LayoutError,
        r"experts\.0\.gate_proj\.bias stands among",
    ),
    "wrong shape of one expert": (
        damaged(lambda t: t.update({expert_key(1, "down"): noise((4, 6))})),
        errors.LayoutError,
        r"experts\.1\.down_proj\.weight is BF16\[4, 6\], but .*experts\.0\.down_proj\.weight .* BF16\[4, 5\]",
    ),
    "gate and up of different shapes": (
        damaged(lambda t: t.update({expert_key(e, "up"): noise((4, 4)) for e in range(3)})),
        errors.LayoutError,
        r"experts\.0\.up_proj\.weight is BF16\[4, 4\], but .*experts\.0\.gate_proj\.weight",
    ),
    "an expert of three axes": (
        damaged(lambda t: t.update({expert_key(e, "down"): noise((1, 4, 5)) for e in range(3)})),
        errors.LayoutError,
        r"experts\.0\.down_proj\.weight: pattern .* has 2 tensor axes, the tensor is \[1, 4, 5\]",
    ),
    "mixed dtypes in a group": (
        damaged(lambda t: t.update({expert_key(2, "gate"): noise((5, 4), torch.float16)})),
        errors.LayoutError,
        r"experts\.2\.gate_proj\.weight is F16\[5, 4\], but .* of the same group is BF16\[5, 4\]",
    ),
    "two prefixes": (damaged(both_prefixes), errors.MissingExpertsError, r"missing: .*layers\.0\.mlp\.experts\."),
    "two layouts": (
        damaged(lambda t: t.update({"model.layers.1.mlp.experts.down_projs": noise((3, 5, 4))})),
        errors.LayoutError,
        r"several layouts .*; say which one it is \(source=, --from\)",
    ),
    "no known layout": (
        damaged(lambda t: [t.pop(key) for key in list(t) if "expert" in key]),
        errors.LayoutError,
        r"no key of .*src belongs to a known layout \(.*nemo.*\); name it \(source=, --from\) or register",
    ),
    "key in two shards": (
        after(key_in_two_shards),
        errors.FormatError,
        r"in two shards of .*src: model-00001-of-00002\.safetensors and model-00002-of-00002\.safetensors; remove",
    ),
    "shard missing": (
        after(lambda src: first_shard(src).unlink()),
        errors.MissingShardError,
        r"index\.json: 1 of 2 shards are missing, with \d+ tensors: .*model-00001-of-00002\.safetensors.*; fetch them",
    ),
    "index names absent keys": (
        after(edit_index(lambda names: names.update({"model.ghost.weight": "model-00001-of-00002.safetensors"}))),
        errors.FormatError,
        r"model\.safetensors\.index\.json does not fit .*1 tensors are named but in no shard: .*model\.ghost\.weight",
    ),
    "index leaves out a key": (
        after(edit_index(lambda names: names.pop("model.embed_tokens.weight"))),
        errors.FormatError,
        r"1 tensors are in a shard but not named: .*model\.embed_tokens\.weight.*; index and shards are of different",
    ),
    "index puts a key in another shard": (
        after(edit_index(lambda n: n.update({"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}))),
        errors.FormatError,
        r"1 tensors are in another shard than named",
    ),
    "index points outside": (
        after(edit_index(lambda names: names.update({"model.embed_tokens.weight": "../secret.safetensors"}))),
        errors.UnsafePathError,
        r"secret\.safetensors.*expected a plain name inside the folder; correct the index",
    ),
    "truncated file": (
        after(cut_off),
        errors.FormatError,
        r"model-00001-of-00002\.safetensors: truncated: expected \d+ bytes, found \d+, 3 bytes are missing; .*fetch",
    ),
    "padded file": (
        after(pad),
        errors.FormatError,
        r"model-00001-of-00002\.safetensors: padded: expected \d+ bytes, found \d+, 5 bytes are extra; .*fetch",
    ),
    "only pickles": (
        after(only_pickles),
        errors.UnsupportedCheckpointError,
        r"pytorch_model\.bin: expected a file of torch\.save, found a pickle of torch before.*; lazysd runs no code",
    ),
    "a pickle named safetensors": (
        after(pickle_in_disguise),
        errors.UnsupportedCheckpointError,
        r"model-00001-of-00002\.safetensors",
    ),
    "git lfs pointer": (
        after(git_lfs_pointer),
        errors.UnsupportedCheckpointError,
        r"model-00001-of-00002\.safetensors.*(?i:lfs).*git lfs pull",
    ),
    "nothing there": (
        lambda folder: folder / "absent",
        errors.MissingShardError,
        r"absent.*does not exist; check the path",
    ),
    "an empty folder": (
        after(lambda src: [file.unlink() for file in src.iterdir()]),
        errors.MissingShardError,
        r"src: expected \.safetensors files, found none; check the path",
    ),
    "config.json is no JSON": (
        after(lambda src: (src / "config.json").write_text("{oops")), errors.FormatError, r"config\.json"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_by_the_library(tmp_path: Path, case: str) -> None:
    make, error, match = CASES[case]
    src = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=f"(?s){match}") as caught:
        lazysd.open(src).convert("nemo").save(tmp_path / "dst")
    assert isinstance(caught.value, errors.LazysdError)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("case", CASES)
def test_by_the_command_line(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, _, match = CASES[case]
    match = match.replace("source=, ", "")  # a shell has options alone
    src = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(src), str(tmp_path / "dst"), "--to", "nemo"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    with pytest.raises(AssertionError, match=f"(?s){match}"):
        raise AssertionError(shown.err)
    assert sorted(tmp_path.iterdir()) == before


def good(folder: Path) -> Path:
    return after(lambda src: None)(folder)


def refused(src: Path, dst: Path, error: type[Exception], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused by the library with this error, by the command line with exit code 4 and the same words."""
    with pytest.raises(error, match=match):
        lazysd.open(src).convert("nemo").save(dst)
    assert main(["convert", str(src), str(dst), "--to", "nemo"]) == 4
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(capsys.readouterr().err)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", [".", "inside", "deep/inside", ".."])
def test_dst_on_inside_or_around_src(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    src = good(tmp_path / "home")
    before = tree(tmp_path)
    refused(
        src, src / where, errors.OutputExistsError, r"src.*; write to (another folder|a folder outside of it)", capsys
    )
    assert main(["convert", str(src), str(src / where), "--to", "nemo", "--overwrite"]) == 4
    assert tree(tmp_path) == before


def test_dst_reached_by_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = good(tmp_path)
    (tmp_path / "link").symlink_to(src)
    before = tree(src)
    refused(
        src,
        tmp_path / "link",
        errors.OutputExistsError,
        r"link is, or holds, the source .*src.*; write to another folder",
        capsys,
    )
    refused(src, tmp_path / "link" / "x", errors.OutputExistsError, r"lies inside the source", capsys)
    assert tree(src) == before


def test_dst_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = good(tmp_path), tmp_path / "dst"
    dst.mkdir()
    (dst / "precious").write_text("mine")
    refused(src, dst, errors.OutputExistsError, r"dst exists; choose another destination or pass .*--overwrite", capsys)
    assert tree(dst) == {"precious": b"mine"}


def test_dst_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = good(tmp_path), tmp_path / "dst"
    dst.write_text("mine")
    refused(src, dst, errors.OutputExistsError, r"dst exists", capsys)
    assert dst.read_text() == "mine"


def test_too_little_space_is_seen_before_the_first_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, real = good(tmp_path), os.statvfs
    before = sorted(tmp_path.iterdir())

    def full(path: Any) -> Any:
        found = real(path)
        return os.statvfs_result((*found[:4], 0, *found[5:10]))

    with patch("os.statvfs", full):
        refused(src, tmp_path / "dst", errors.NoSpaceError, r"0 bytes free, the result needs [\d,]+ more; free", capsys)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("failing", ["pwrite", "posix_fallocate", "fsync"])
def test_disk_runs_full_while_writing(tmp_path: Path, failing: str, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = good(tmp_path), tmp_path / "dst"

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch(f"os.{failing}", full):
        refused(src, dst, errors.NoSpaceError, r"no space left .*dst.*; free some and run again", capsys)
    assert not dst.exists()
    assert main(["convert", str(src), str(dst), "--to", "nemo", "--verify"]) == 0


def test_no_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = good(tmp_path)

    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with patch("pathlib.Path.mkdir", denied):
        refused(src, tmp_path / "dst", errors.WriteError, r"cannot write .*dst.*: Permission denied", capsys)
    assert not (tmp_path / "dst").exists()


def test_memory_budget_names_what_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = good(tmp_path)
    converted = lazysd.open(src).convert("nemo")
    with pytest.raises(
        errors.MemoryBudgetError, match=r"max_memory 1\.0 MB is too little .* would do is (\d+)MB"
    ) as caught:
        converted.save(tmp_path / "dst", max_memory="1MB")
    assert main(["convert", str(src), str(tmp_path / "dst"), "--to", "nemo", "--max-memory", "1MB"]) == 2
    assert not (tmp_path / "dst").exists()
    capsys.readouterr()
    enough = str(caught.value).rsplit(" ", 1)[-1]
    converted.save(tmp_path / "dst", max_memory=enough)


def test_source_truncated_after_opening(tmp_path: Path) -> None:
    src = good(tmp_path)
    ckpt = lazysd.open(src, io="pread")
    cut_off(src)
    with pytest.raises(errors.SourceChangedError, match=r"model-00001-of-00002.* was modified since .*; open it again"):
        ckpt.convert("nemo").save(tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
