"""What a folder is taken for: every file of it is converted, copied, or named in a remark."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import FormatError, UnsafePathError, UnsupportedCheckpointError
from lazysd.merging import merge

CONFIG = {"model_type": "qwen3_moe", "num_experts": 2, "hidden_size": 8, "moe_intermediate_size": 6}
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_version": "0.21.2"}
Q = "model.layers.0.self_attn.q_proj."
TWO = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def moe() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {Q + "weight": (8, 8), "lm_head.weight": (4, 8)}
    for e in range(2):
        for name, shape in (("gate", (6, 8)), ("up", (6, 8)), ("down", (8, 6))):
            shapes[f"model.layers.0.mlp.experts.{e}.{name}_proj.weight"] = shape
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def halves() -> list[dict[str, torch.Tensor]]:
    keys = sorted(moe())
    return [{key: moe()[key] for key in part} for part in (keys[::2], keys[1::2])]


def put(folder: Path, files: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(content, folder / name, metadata)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def index_of(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}


def made(source: Path, tmp_path: Path, *options: str, code: int = 0) -> dict[str, Path]:
    """The files of a conversion to nemo."""
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "nemo", *options]) == code
    return {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}


ALWAYS = {"model.safetensors", "lazysd.manifest.json", "config.json"}


def test_side_files_of_subfolders_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"1_Pooling/config.json": {"mean": True}, "a/b/c.txt": "deep", "modules.json": []}
    source = put(tmp_path / "src", {"model.safetensors": moe(), "config.json": CONFIG, **files})
    assert lazysd.open(source).remarks == ()
    found = made(source, tmp_path)
    assert set(found) == ALWAYS | set(files)
    assert json.loads(found["1_Pooling/config.json"].read_text()) == {"mean": True}
    assert capsys.readouterr().err == ""


def test_every_file_is_copied_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule, on a folder that holds one of everything."""
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "secret").write_text("OUT")
    source = put(
        tmp_path / "src",
        {
            "model.safetensors": moe(), "config.json": CONFIG, "mtp.safetensors": {"m": torch.ones(2)},
            "tokenizer.json": "{}", "pytorch_model.bin": "old", "original/consolidated.00.pth": "older",
            "original/params.json": "{}", "onnx/model.onnx": "x", "optimizer.pt": "x", ".gitattributes": "x",
            ".cache/huggingface/x": "x", "README.md": "# M", "sub/notes.txt": "n",
        },
    )  # fmt: skip
    (source / "vocab.json").symlink_to(tmp_path / "away" / "secret")
    (source / "linked").symlink_to(tmp_path / "away")
    (source / "inside.json").symlink_to("tokenizer.json")
    os.mkfifo(source / "pipe")
    found = made(source, tmp_path)
    assert set(found) == ALWAYS | {"tokenizer.json", "README.md", "sub/notes.txt", "inside.json"}
    assert not any(path.is_symlink() for path in found.values())
    said = capsys.readouterr().err
    for name in (
        *("mtp.safetensors", "pytorch_model.bin", "optimizer.pt", "original", "onnx", ".gitattributes", ".cache"),
        *("vocab.json", "linked", "pipe"),
    ):
        assert name in said, name
    assert "OUT" not in "".join(path.read_text("latin1") for path in found.values())


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", INDEX])
def test_json_that_decides_is_refused_where_it_links_out(tmp_path: Path, name: str) -> None:
    weights = "adapter_model.safetensors" if name == "adapter_config.json" else "model.safetensors"
    source = put(tmp_path / "src", {weights: {"w": torch.ones(2)}})
    content = {"weight_map": {"w": weights}} if name == INDEX else CONFIG
    put(tmp_path / "away", {name: content})
    (source / name).symlink_to(tmp_path / "away" / name)
    with pytest.raises(UnsafePathError, match=r"outside the folder; .*follow_links=True \(--follow-links\)"):
        lazysd.open(source)
    assert list(lazysd.open(source, follow_links=True)) == ["w"]
    assert main(["inspect", str(source)]) == 3
    assert main(["inspect", str(source), "--follow-links"]) == 0


def test_following_links_copies_what_they_point_to(tmp_path: Path) -> None:
    source = put(tmp_path / "src", {"model.safetensors": moe(), "config.json": CONFIG})
    put(tmp_path / "away", {"tokenizer.json": '{"t": 1}', "more/x.txt": "x"})
    (source / "tokenizer.json").symlink_to(tmp_path / "away" / "tokenizer.json")
    (source / "more").symlink_to(tmp_path / "away" / "more")
    (source / "again").symlink_to(source)
    found = made(source, tmp_path, "--follow-links")
    assert found["tokenizer.json"].read_text() == '{"t": 1}'
    assert found["more/x.txt"].read_text() == "x"
    assert set(found) == ALWAYS | {"tokenizer.json", "more/x.txt"}


@pytest.mark.parametrize("blobs_elsewhere", [False, True])
def test_a_subfolder_of_a_hub_snapshot_opens(tmp_path: Path, blobs_elsewhere: bool) -> None:
    model = tmp_path / "models--o--n"
    blobs = tmp_path / "disk2" / "blobs" if blobs_elsewhere else model / "blobs"
    put(blobs, {"f.safetensors": {"a": torch.ones(2)}, "t": "tokens"})
    inside = model / "snapshots" / "r" / "unet"
    (inside / "tok").mkdir(parents=True)
    if blobs_elsewhere:
        (model / "blobs").symlink_to(blobs)
    (inside / "model.safetensors").symlink_to("../../../blobs/f.safetensors")
    (inside / "tok" / "vocab.json").symlink_to("../../../../blobs/t")
    (inside / "stolen.json").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("OUT")
    ckpt = lazysd.open(inside)
    assert list(ckpt) == ["a"]
    assert [file.name for file in ckpt.facts.side_files] == ["tok/vocab.json"]
    assert "'stolen.json'" in ckpt.remarks[0]


def test_a_model_beside_an_adapter_is_the_checkpoint(tmp_path: Path) -> None:
    at = "base_model.model." + Q
    lora = {at + "lora_A.weight": torch.randn(2, 8), at + "lora_B.weight": torch.randn(8, 2)}
    source = put(
        tmp_path / "src",
        {"model.safetensors": moe(), "config.json": CONFIG, "adapter_model.safetensors": lora},
    )
    put(source, {"adapter_config.json": LORA})
    ckpt = lazysd.open(source)
    assert (ckpt.is_adapter, ckpt.adapter, set(ckpt)) == (False, None, set(moe()))
    (remark,) = ckpt.remarks
    assert "an adapter, which is left out ('adapter_model.safetensors', 'adapter_config.json')" in remark
    assert set(made(source, tmp_path)) == ALWAYS
    adapter = lazysd.open(source / "adapter_model.safetensors")
    assert (adapter.is_adapter, set(adapter), adapter.remarks) == (True, set(lora), ())
    adapter.save(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "lazysd.manifest.json"}
    merged = merge(ckpt, adapter)[Q + "weight"].materialize()
    expected = moe()[Q + "weight"] + 2 * lora[at + "lora_B.weight"] @ lora[at + "lora_A.weight"]
    assert torch.allclose(merged, expected, atol=1e-5)


def test_an_adapter_without_a_config_stays_one(tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "weights.safetensors"):
        source = put(tmp_path / name, {name: {"w": torch.ones(2)}, "adapter_config.json": LORA})
        assert lazysd.open(source).is_adapter


def test_the_index_decides_between_copies(tmp_path: Path) -> None:
    one, two = {"w": torch.zeros(2), "a": torch.ones(1)}, {"w": torch.ones(2), "b": torch.ones(1)}
    weight_map = {"a": TWO[0], "b": TWO[1], "w": TWO[1]}
    source = put(tmp_path / "src", {TWO[0]: one, TWO[1]: two, INDEX: {"weight_map": weight_map}})
    ckpt = lazysd.open(source)
    assert torch.equal(ckpt["w"].materialize(), two["w"])
    (remark,) = ckpt.remarks
    assert "1 tensor: 'w' in several shards" in remark
    assert f"that in {TWO[1]!r}, not that in {TWO[0]!r}" in remark
    put(source, {INDEX: {"weight_map": {**weight_map, "w": TWO[0]}}})
    assert torch.equal(lazysd.open(source)["w"].materialize(), one["w"])
    (source / INDEX).unlink()
    with pytest.raises(FormatError, match="'w' stands in two shards"):
        lazysd.open(source)


def test_two_candidates_are_said(tmp_path: Path) -> None:
    parts = dict(zip(TWO, halves(), strict=True))
    other = {key: tensor + 1 for key, tensor in moe().items()}
    source = put(tmp_path / "src", {**parts, INDEX: index_of(parts), "model.safetensors": other, "config.json": CONFIG})
    ckpt = lazysd.open(source)
    assert torch.equal(ckpt[Q + "weight"].materialize(), moe()[Q + "weight"])
    (remark,) = ckpt.remarks
    assert f"both model.safetensors and the 2 shards of {INDEX}: the shards were read, and model.safetensors" in remark
    assert torch.equal(lazysd.open(source / "model.safetensors")[Q + "weight"].materialize(), other[Q + "weight"])


def test_a_variant_s_index_opens_by_folder_and_by_path(tmp_path: Path) -> None:
    names = [f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = dict(zip(names, halves(), strict=True))
    index = "model.safetensors.index.fp16.json"
    source = put(tmp_path / "src", {**parts, index: index_of(parts), "config.json": CONFIG})
    for path in (source, source / index):
        ckpt = lazysd.open(path)
        assert (set(ckpt), ckpt.remarks, ckpt.path) == (set(moe()), (), source)
    (source / names[1]).unlink()
    with pytest.raises(lazysd.errors.MissingShardError, match=r"index\.fp16\.json: 1 of 2 shards are missing"):
        lazysd.open(source)


def test_metadata_that_differs_is_said(tmp_path: Path) -> None:
    for name, part, author in zip(TWO, halves(), ("x", "y"), strict=True):
        put(tmp_path / "src", {name: part}, {"format": "pt", "author": author, "only" + author: author})
    ckpt = lazysd.open(tmp_path / "src")
    assert ckpt.metadata == {"format": "pt", "onlyx": "x", "onlyy": "y"}
    (remark,) = ckpt.remarks
    assert f"differs in 'author', which is left out: 'x' in {TWO[0]!r}, 'y' in {TWO[1]!r}" in remark


def test_json_as_python_writes_it_opens(tmp_path: Path) -> None:
    text = json.dumps({**CONFIG, "time_step_limit": [0.0, float("inf")], "x": float("nan"), "y": -float("inf")})
    source = put(tmp_path / "src", {"model.safetensors": moe(), "config.json": text})
    config = lazysd.open(source).config
    assert config is not None
    assert config["time_step_limit"] == [0.0, float("inf")]
    assert made(source, tmp_path)["config.json"].read_text() == text
    put(source, {"config.json": '{"x": 1e999}'})
    with pytest.raises(FormatError, match="overflows"):
        lazysd.open(source)
    put(source, {"config.json": '{"a": 1, "a": 2}'})
    with pytest.raises(FormatError, match="given twice"):
        lazysd.open(source)


# Rank slices.


def sliced(folder: Path, tensors: Mapping[str, torch.Tensor], ranks: int, **changes: Any) -> Path:
    """As torch.distributed.checkpoint's HuggingFaceStorageWriter writes rows of each rank."""
    for rank in range(ranks):
        part, info = {}, {}
        for key, tensor in tensors.items():
            rows = torch.arange(len(tensor)).chunk(ranks)
            if rank < len(rows):
                part[key] = tensor[rows[rank]].contiguous()
                info[key] = {"saved_offsets": [int(rows[rank][0])] + [0] * (tensor.dim() - 1)}
        info |= changes.get("info", {})
        name = f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        put(folder, {name: part}, {"format": "pt", "DCP_SHARDING_INFO": json.dumps(info)})
    return folder


def test_rank_slices_are_put_together(tmp_path: Path) -> None:
    source = put(sliced(tmp_path / "src", moe(), 3), {"config.json": CONFIG})
    ckpt = lazysd.open(source)
    assert {key: tuple(node.shape) for key, node in ckpt.items()} == {k: tuple(t.shape) for k, t in moe().items()}
    assert all(torch.equal(ckpt[key].materialize(), tensor) for key, tensor in moe().items())
    assert "the slices of 3 ranks were put together by their offsets" in ckpt.remarks[0]
    assert ckpt.metadata == {"format": "pt"}
    lazysd.open(put(tmp_path / "whole", {"model.safetensors": moe(), "config.json": CONFIG})).convert("nemo").save(
        tmp_path / "expected"
    )
    found = load_file(made(source, tmp_path)["model.safetensors"])
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_rank_slices_that_cannot_be_whole_are_refused(tmp_path: Path) -> None:
    name = "shard-0000{}-model-00001-of-00001.safetensors"
    source = sliced(tmp_path / "a", moe(), 3)
    with pytest.raises(UnsupportedCheckpointError, match=r"holds one rank's slices \(DCP_SHARDING_INFO"):
        lazysd.open(source / name.format(2))
    (source / name.format(2)).unlink()
    with pytest.raises(FormatError, match="the slices of rank 2"):
        lazysd.open(source)
    with pytest.raises(FormatError, match="do not make up"):
        lazysd.open(sliced(tmp_path / "b", {"w": torch.ones(8, 2)}, 2, info={"w": {"saved_offsets": [4, 0]}}))
    for odd in ({"w": {"saved_offsets": [-1, 0]}}, {"w": {"saved_offsets": [0]}}, {"w": 3}, {"w": {}}):
        with pytest.raises(FormatError, match=r"expected DCP_SHARDING_INFO to give 2 saved_offsets for 'w'"):
            lazysd.open(sliced(tmp_path / "c", {"w": torch.ones(8, 2)}, 2, info=odd))


@pytest.mark.parametrize(
    ("key", "size"), [("model.embed_tokens.weight", "vocab_size"), ("model.norm.weight", "hidden_size")]
)
def test_rank_slices_whose_last_rank_is_missing_are_refused(tmp_path: Path, key: str, size: str) -> None:
    """What is left fits together; only config.json tells."""
    whole = {key: torch.arange(12.0)[:, None], "model.layers.0.w": torch.ones(12, 2)}
    config = json.dumps({size: 12})
    source = put(sliced(tmp_path / "src", whole, 3), {"config.json": config})
    assert lazysd.open(source)[key].shape == (12, 1)
    (source / "shard-00003-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FormatError, match=rf"end at row 8 of 12 \({size} in config.json\), so the last ranks' files"):
        lazysd.open(source)
    (source / "config.json").unlink()
    assert "check that none is missing" in lazysd.open(source).remarks[0]


def test_a_minus_zero_in_a_shape_is_refused(tmp_path: Path) -> None:
    text = b'{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match="expected whole numbers, found -0"):
        lazysd.open(tmp_path / "m.safetensors")
    text = b'{"w[-0]":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert list(lazysd.open(tmp_path / "m.safetensors")) == ["w[-0]"]


def test_a_tensor_of_no_bytes_and_a_thousand_million_rows(tmp_path: Path) -> None:
    text = b'{"w":{"dtype":"F32","shape":[1000000000,0,4],"data_offsets":[0,0]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    ckpt = lazysd.open(tmp_path / "m.safetensors")
    assert tuple(ckpt["w"].materialize().shape) == (1000000000, 0, 4)
    assert tuple(ckpt["w"][5].shape) == (0, 4)
    ckpt.save(tmp_path / "out")
    assert tuple(lazysd.open(tmp_path / "out")["w"].shape) == (1000000000, 0, 4)


def test_tensors_are_made_once_and_when_one_is_asked_for(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lazysd.tensor.whole as whole

    calls = []
    make = whole.assemble_columns
    monkeypatch.setattr(whole, "assemble_columns", lambda *given: calls.append(given) or make(*given))
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    assert (len(ckpt), len(list(ckpt)), len(ckpt.keys())) == (57, 57, 57)
    assert not calls
    seen: list[object] = []
    crew = [threading.Thread(target=lambda: seen.append(ckpt["lm_head.weight"])) for _ in range(9)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert len(set(map(id, seen))) == 1
    assert list(ckpt.items()) == list(zip(ckpt, ckpt.values(), strict=True))
    again = pickle.loads(pickle.dumps(lazysd.open(golden / "qwen3_moe_tiny")))
    assert list(again) == list(ckpt)
    assert again["lm_head.weight"].reads() == ckpt["lm_head.weight"].reads()
