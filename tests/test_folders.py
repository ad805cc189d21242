"""Every file of a source folder is converted, copied, or named in one remark, whatever else lies there."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from checkpoints import random_hf, write
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import lazysd
from lazysd.errors import FormatError, MissingShardError, UnsafePathError
from lazysd.stores import strict_json

SECRET = b"what others may not see"
CONFIG = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 4, "moe_intermediate_size": 5}
GOLDEN = Path(__file__).resolve().parent / "golden"


def weights(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"other": torch.ones(2)}, folder / name)

    return make


def text(name: str, content: bytes = b"{}") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def pickled(name: str) -> Callable[[Path], None]:
    return lambda folder: torch.save({"w": torch.ones(2)}, folder / name)


def socket_at(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as held:
        here = os.open(folder, os.O_RDONLY)
        try:
            held.bind(f"/proc/self/fd/{here}/sock")
        finally:
            os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "tokenizer": text("tokenizer.json"),
    "code": text("modeling_mine.py", b"import os"),
    "image": text("assets/picture.png", b"\x89PNG"),
    "deep": text("a/b/c/d.txt"),
    "odd name": text("a \u202e\nname.txt"),
    "hidden": text(".gitattributes"),
    "hidden inside": text("assets/.DS_Store"),
    "git": text(".git/config"),
    "empty folder": lambda folder: (folder / "empty").mkdir(),
    "empty file": text("empty.txt", b""),
    "weights inside": weights("onnx/model.safetensors"),
    "more beside weights": text("onnx/notes.md"),
    "weights deeper": weights("original/more/consolidated.safetensors"),
    "other weights": weights("extra.safetensors"),
    "capitals": weights("EXTRA.SAFETENSORS"),
    "a pickle in capitals": pickled("pytorch_model.BIN"),
    "half a download": weights("model-00009.safetensors.incomplete"),
    "a copy": weights("model.safetensors.bak"),
    "an older one": weights("model.safetensors.1"),
    "checksums": text("model.safetensors.sha256"),
    "gguf": text("model.Q4.gguf", b"GGUF"),
    "bin": pickled("pytorch_model.bin"),
    "training": pickled("training_args.bin"),
    "optimizer": pickled("optimizer.pt"),
    "stray index": text("pytorch_model.bin.index.json"),
    "adapter": weights("adapter_model.safetensors"),
    "adapter config": text("adapter_config.json", b'{"peft_type": "LORA", "r": 1}'),
    "adapter inside": weights("lora/adapter_model.safetensors"),
    "metadata": text(".metadata", b"\x80"),
    "manifest": text("lazysd.manifest.json"),
    "fifo": lambda folder: os.mkfifo(folder / "pipe.json"),
    "socket": socket_at,
    "link out": link("stolen.json", "../secret"),
    "link to a folder out": link("stolen", "../secrets"),
    "link inside": link("alias.json", "config.json"),
    "link to itself": link("loop.json", "loop.json"),
    "link to nothing": link("gone.json", "nowhere"),
    "folder in itself": link("round", "."),
    "device": link("zero", "/dev/zero"),
}


def sharded(folder: Path) -> None:
    write(folder, random_hf(), 2, CONFIG)


def alone(folder: Path) -> None:
    write(folder, random_hf(), config=CONFIG)


def of_torch(folder: Path) -> None:
    folder.mkdir()
    torch.save(random_hf(), folder / "pytorch_model-00001-of-00001.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def of_dcp(folder: Path) -> None:
    held = {key: lazysd.from_torch(tensor) for key, tensor in random_hf().items()}
    lazysd.Checkpoint(held, config=CONFIG).save(folder, format="dcp")


def peft(folder: Path) -> None:
    shutil.copytree(GOLDEN / "peft_paramwrapper_r3", folder)


# What would be another checkpoint, or one that is refused, in the folder of this one.
UNLIKE = {"of_torch": ("bin", "stray index", "metadata"), "of_dcp": ("metadata", "manifest")}
BASES = {make.__name__: make for make in (sharded, alone, of_torch, of_dcp, peft)}


def all_files(folder: Path) -> set[str]:
    """Everything in a folder that is no folder, links to folders among them."""
    return {
        os.path.relpath(os.path.join(root, name), folder)
        for root, folders, names in os.walk(folder)
        for name in (*names, *(name for name in folders if os.path.islink(os.path.join(root, name))))
    }


def account(at: Path, base: str, kinds: list[str]) -> None:
    """Build such a folder, convert it, and find each of its files again."""
    source, out = at / "source", at / "out"
    BASES[base](source)
    for kind in kinds:
        if kind not in UNLIKE.get(base, ()):
            KINDS[kind](source)
    ckpt = lazysd.open(source)
    made = ckpt if ckpt.layout is None else ckpt.convert("peft-per-expert" if ckpt.is_adapter else "nemo")
    made.save(out)
    read = {file.name for file in ckpt.files}
    rewritten = {"config.json", "adapter_config.json", "lazysd.manifest.json"} & all_files(out)
    for name in all_files(source):
        remarks = [one for one in ckpt.remarks if says(one, source, name)]
        path = source / name
        is_copied = name in all_files(out) and name not in rewritten | read and path.is_file()
        if is_copied:
            assert (out / name).read_bytes() == path.read_bytes(), name
        index = name.endswith(".safetensors.index.json") or (name == ".metadata" and "__0_0.distcp" in read)
        ways = [is_copied, name in read or name in rewritten or index, bool(remarks)]
        assert sum(ways) == 1, f"{name!r}: copied, converted, remarked upon: {ways}; {ckpt.remarks}"
        assert len(remarks) <= 1, f"{name!r} stands in {len(remarks)} remarks: {remarks}"
    assert not any(SECRET in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not any(path.is_symlink() for path in out.rglob("*"))


def says(remark: str, source: Path, name: str) -> bool:
    """Whether a remark names a file, or a folder that it lies in."""
    parts = [name, *(str(parent) for parent in Path(name).parents if str(parent) != ".")]
    shown = {json.dumps(part)[1:-1] for part in parts} | {repr(part)[1:-1] for part in parts}
    return any(f"'{said}'" in remark or f"'{source}/{said}'" in remark for said in shown)


@pytest.fixture(autouse=True)
def every_name() -> Iterator[None]:
    """Remarks that name all they count, however many."""
    with mock.patch.object(strict_json, "MAX_LISTED", 100):
        yield


def outside(at: Path) -> None:
    (at / "secret").write_bytes(SECRET)
    (at / "secrets").mkdir()
    (at / "secrets" / "token").write_bytes(SECRET)


@pytest.mark.parametrize("base", BASES)
def test_everything_at_once(base: str, tmp_path: Path) -> None:
    outside(tmp_path)
    account(tmp_path, base, list(KINDS))


@settings(max_examples=25, deadline=None)
@given(base=st.sampled_from(list(BASES)), kinds=st.lists(st.sampled_from(list(KINDS)), unique=True))
def test_every_file_is_accounted_for(base: str, kinds: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    at = tmp_path_factory.mktemp("folder")
    outside(at)
    try:
        account(at, base, kinds)
    finally:
        shutil.rmtree(at)


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("config.json", FormatError),
        ("/dev/zero", UnsafePathError),
        ("nowhere", MissingShardError),
        ("../x", UnsafePathError),
    ],
)
def test_a_config_that_cannot_be_opened_is_not_done_without(target: str, error: type, tmp_path: Path) -> None:
    """Without it the checkpoint would be taken for another: a loop, a device or nothing is no reason to go on."""
    alone(tmp_path / "source")
    (tmp_path / "x").write_text("{}")
    (tmp_path / "source" / "config.json").unlink()
    (tmp_path / "source" / "config.json").symlink_to(target)
    with pytest.raises(error, match=r"config\.json"):
        lazysd.open(tmp_path / "source")


def test_a_link_to_nothing_is_not_to_be_followed(tmp_path: Path) -> None:
    alone(tmp_path / "source")
    (tmp_path / "source" / "gone.json").symlink_to("nowhere")
    (remark,) = lazysd.open(tmp_path / "source").remarks
    assert remark.endswith("a link to nothing: 'gone.json'")
