"""A part of a checkpoint, such as an unfinished download: looked at as far as it goes, and never called whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import by_hand, random_hf, write
from safetensors.torch import save_file

import lazysd
from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter
from lazysd.cli.main import main
from lazysd.comparison import ABSENT
from lazysd.distributed import LazyStorageReader
from lazysd.errors import FormatError, MissingShardError, MissingTensorError
from lazysd.etags import check_snapshot
from lazysd.merging import merge
from lazysd.quantization import dequantize, quantize

EXPERTS = 11
CONFIG = {"model_type": "qwen3_moe", "num_experts": EXPERTS, "hidden_size": 4, "moe_intermediate_size": 5}
GONE = "model-00002-of-00003.safetensors"


def whole(dst: Path) -> Path:
    return write(dst, random_hf(EXPERTS, layers=3), 3, CONFIG)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Two of three shards, with an index that says how much there is."""
    folder = whole(tmp_path / "part")
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    total = sum(tensor.nbytes for tensor in random_hf(EXPERTS, layers=3).values())
    index.write_text(json.dumps(said | {"metadata": {"total_size": total}}))
    (folder / GONE).unlink()
    return folder


def nemo_adapter() -> Qwen3MoeStateDictAdapter:
    moe = SimpleNamespace(n_routed_experts=EXPERTS, moe_inter_dim=5, expert_activation="swiglu", expert_bias=False)
    return Qwen3MoeStateDictAdapter(None, moe, SimpleNamespace(dispatcher="torch", experts="torch"))


def lacking(folder: Path) -> dict[str, str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {key: name for key, name in index["weight_map"].items() if name == GONE}


def nbytes_of(keys: Any) -> int:
    tensors = random_hf(EXPERTS, layers=3)
    return sum(tensors[key].nbytes for key in keys)


def test_only_who_asks_gets_a_part(part: Path) -> None:
    gone = lacking(part)
    said = rf"index\.json: 1 of 3 shards are missing, with {len(gone)} tensors: '{GONE}' \(about .*\); fetch them, or"
    with pytest.raises(MissingShardError, match=said):
        lazysd.open(part)
    ckpt = lazysd.open(part, partial=True)
    assert set(ckpt) == set(random_hf(EXPERTS, layers=3)) - set(gone)
    (absent,) = ckpt.facts.absent
    assert (absent.names, absent.num_missing, absent.num_shards) == ((GONE,), 1, 3)
    assert (absent.homes, absent.nbytes) == (gone, nbytes_of(gone))
    (remark,) = ckpt.remarks
    assert remark.startswith(f"not whole: {absent}")
    assert repr(ckpt).startswith(f"Checkpoint(a part: {len(ckpt)} tensors")
    assert "uneven" not in repr(ckpt)  # what is missing explains it
    assert "Part of a checkpoint" in ckpt._repr_html_()
    assert GONE in ckpt._repr_html_()
    assert torch.equal(ckpt["model.layers.0.input_layernorm.weight"].view(torch.int16), _norm())


def _norm() -> torch.Tensor:
    return random_hf(EXPERTS, layers=3)["model.layers.0.input_layernorm.weight"].view(torch.int16)


def test_a_missing_key_names_its_shard(part: Path) -> None:
    ckpt = lazysd.open(part, partial=True)
    key = next(iter(lacking(part)))
    with pytest.raises(MissingTensorError, match=rf"its shard '{GONE}' is missing; fetch it"):
        ckpt[key]
    with pytest.raises(MissingTensorError, match="no tensor 'nothing' among"):
        ckpt["nothing"]


@pytest.mark.parametrize(
    "what",
    [
        lambda ckpt, dst: ckpt.convert("nemo"),
        lambda ckpt, dst: ckpt.plan(),
        lambda ckpt, dst: ckpt.save(dst),
        lambda ckpt, dst: ckpt.map(lambda t: t).rename(lambda key: "x." + key).save(dst),
        lambda ckpt, dst: (ckpt | {"more": torch.zeros(2)}).save(dst),
        lambda ckpt, dst: (lazysd.open(whole(dst.parent / "whole")).select("none") | ckpt).save(dst),
        lambda ckpt, dst: ckpt.drop("model.layers.0.*").save(dst),
        lambda ckpt, dst: list(ckpt.iter_tensors()),
        lambda ckpt, dst: lazysd.load_into(torch.nn.Linear(1, 1), ckpt),
        lambda ckpt, dst: merge(ckpt, ckpt),
        lambda ckpt, dst: lazysd.convert(ckpt, "nemo"),
        lambda ckpt, dst: LazyStorageReader(ckpt),
        lambda ckpt, dst: nemo_adapter().from_hf(ckpt),
        lambda ckpt, dst: nemo_adapter().to_hf(ckpt),
        lambda ckpt, dst: dequantize(ckpt, "bf16"),
        lambda ckpt, dst: quantize(ckpt, "fp8-blocks"),
    ],
)
def test_what_needs_a_whole_one_refuses_and_names_the_shard(
    part: Path, tmp_path: Path, what: Callable[[Any, Path], Any]
) -> None:
    with pytest.raises(MissingShardError, match=rf"cannot .* a part of a checkpoint: .*{GONE}.*; fetch them first"):
        what(lazysd.open(part, partial=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_whole_by_itself_is_used_like_any_other(part: Path, tmp_path: Path) -> None:
    """A selection that needs none of the missing shards, and a part whose missing tensors come from elsewhere."""
    ckpt, gone = lazysd.open(part, partial=True), lacking(part)
    ckpt.select("model.embed_tokens.*").save(tmp_path / "embed")
    assert list(lazysd.open(tmp_path / "embed")) == ["model.embed_tokens.weight"]
    tensors = random_hf(EXPERTS, layers=3)
    (ckpt | {key: tensors[key] for key in gone}).convert("nemo").save(tmp_path / "out")
    for layer in range(3):
        for key, tensor in by_hand(tensors, EXPERTS, layer)["nemo"].items():
            assert torch.equal(lazysd.open(tmp_path / "out")[key].view(torch.int16), tensor)
    assert (ckpt | lazysd.open(whole(tmp_path / "whole"))).facts.absent == ()


@pytest.mark.parametrize("mine", [True, False])
def test_comparing_says_what_was_not_compared(part: Path, tmp_path: Path, mine: bool) -> None:
    other = whole(tmp_path / "whole")
    gone = lacking(part)
    sides = (lazysd.open(part, partial=True), lazysd.open(other))
    found = lazysd.compare(*(sides if mine else sides[::-1]))
    assert not found.equal
    assert {one.key for one in found.differences if one.kind == ABSENT} == set(gone)
    assert len(found.differences) == len(gone)
    assert f"{len(sides[0])} tensors equal, {len(gone)} not compared, in missing shards" in str(found)
    narrow = lazysd.compare(*(side.select("model.embed*") for side in sides))
    assert narrow.equal


def test_two_parts_and_keys_of_one_side_alone(part: Path) -> None:
    ckpt = lazysd.open(part, partial=True)
    found = lazysd.compare(ckpt, ckpt | {"more": torch.zeros(2)})
    kinds = [one.kind for one in found.differences]
    assert (kinds.count(ABSENT), kinds.count("missing")) == (len(lacking(part)), 1)


def test_an_index_without_shards(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in part.glob("*.safetensors"):
        shard.unlink()
    num_tensors = len(random_hf(EXPERTS, layers=3))
    assert main(["inspect", str(part)]) == 0
    shown, said = capsys.readouterr()
    assert f"tensors  0 in 0 files, of {num_tensors} in 3" in shown
    assert f"3 of 3 shards are missing, with {num_tensors} tensors" in said


def test_a_numbered_set_without_an_index(part: Path, tmp_path: Path) -> None:
    (part / "model.safetensors.index.json").unlink()
    with pytest.raises(MissingShardError, match=rf"part: 1 of 3 shards are missing: '{GONE}'; fetch them"):
        lazysd.open(part)
    ckpt = lazysd.open(part, partial=True)
    with pytest.raises(MissingTensorError, match=rf"1 of 3 shards are missing: '{GONE}'; fetch"):
        ckpt[next(iter(random_hf(EXPERTS, layers=3).keys() - set(ckpt)))]
    with pytest.raises(MissingShardError, match=GONE):
        ckpt.select("model.embed*").save(tmp_path / "out")  # nobody knows what the missing shard holds
    found = lazysd.compare(ckpt, lazysd.open(whole(tmp_path / "whole")))
    assert {one.kind for one in found.differences} == {ABSENT}


def test_commands(part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, key = whole(tmp_path / "whole"), next(iter(lacking(part)))
    for code, words in (
        (0, ["inspect", part]),
        (0, ["show", part, "model.embed_tokens.weight"]),
        (0, ["stats", part, "model.embed*"]),
        (1, ["diff", other, part, "--no-progress"]),
        (3, ["show", part, key]),
        (3, ["show", part, "model.layers.0.mlp.experts.down_projs", "--to", "nemo"]),
        (3, ["plan", part, "--to", "nemo"]),
        (3, ["convert", part, tmp_path / "out", "--to", "nemo"]),
        (3, ["convert", part, tmp_path / "out", "--include", "model.embed*"]),
        (3, ["verify", part, "--against", other]),
        (3, ["verify", other, "--against", part]),
        (3, ["merge", part, part, tmp_path / "out"]),
    ):
        assert main([str(word) for word in words]) == code, words
        assert GONE in capsys.readouterr().err, words
    assert not (tmp_path / "out").exists()
    main(["inspect", str(part), "--json"])
    (missing,) = json.loads(capsys.readouterr().out)["missing"]
    assert (missing["homes"], missing["nbytes"]) == (lacking(part), nbytes_of(lacking(part)))


@pytest.mark.parametrize("total", [0, -5, 1 << 70, "many", None, True, 1.5])
def test_a_size_that_cannot_be_is_not_said(part: Path, total: Any) -> None:
    index = part / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {"total_size": total}}))
    assert lazysd.open(part, partial=True).facts.absent[0].nbytes is None


def test_the_index_is_held_against_the_shards_that_are_there(part: Path) -> None:
    index = part / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    here = next(key for key, name in said["weight_map"].items() if name != GONE)
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {"ghost": said["weight_map"][here]}}))
    with pytest.raises(FormatError, match="1 tensors are named but in no shard: 'ghost'"):
        lazysd.open(part, partial=True)
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {here: GONE}}))
    ckpt = lazysd.open(part, partial=True)  # a copy is there, and the index says to read the other
    assert here not in ckpt
    assert any(f"the index {index} decides" in remark for remark in ckpt.remarks)


def hub(tmp_path: Path) -> tuple[Path, Path]:
    """A snapshot of the hub's cache with the blobs of three shards, as huggingface_hub leaves it."""
    plain, model = whole(tmp_path / "plain"), tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for path in plain.iterdir():
        blob = model / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return model, snapshot


def test_a_download_into_the_hub_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """huggingface_hub fills blobs/<etag>.incomplete, and links the snapshot's file when it is whole."""
    model, snapshot = hub(tmp_path)
    blob = Path(os.path.realpath(snapshot / GONE))
    (snapshot / GONE).unlink()
    assert main(["verify", str(snapshot)]) == 1  # every blob has the bytes of its etag, but this is not the model
    assert f"{GONE}: it is missing; fetch it" in capsys.readouterr().out
    begun = blob.with_name(blob.name + ".1a2b3c4d.incomplete")
    begun.write_bytes(blob.read_bytes()[:100])
    blob.unlink()
    for path in (model, snapshot):
        with pytest.raises(MissingShardError, match=rf"{snapshot}/.*{GONE}'; 1 unfinished download holds 100 B; fetch"):
            lazysd.open(path)
        assert lazysd.open(path, partial=True).facts.absent[0].begun == (100,)
    assert not check_snapshot(snapshot).sound


def test_a_download_of_which_nothing_is_there_yet(tmp_path: Path) -> None:
    """`hf download --local-dir` keeps what it has begun below .cache."""
    downloads = tmp_path / "model" / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    for name in ("hash.etag.incomplete", "other.etag.incomplete"):
        (downloads / name).write_bytes(bytes(500))
    os.symlink("/etc/passwd", downloads / "link.incomplete")
    with pytest.raises(MissingShardError, match=r"found none; 2 unfinished downloads hold 1\.0 kB; check the path"):
        lazysd.open(tmp_path / "model")


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Three shards of which the second ends in the middle of its tensors."""
    folder = whole(tmp_path / "cut")
    raw = (folder / GONE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    shorten(folder / GONE, (start + len(raw)) // 2)
    return folder


def shorten(path: Path, nbytes: int) -> None:
    path.write_bytes(path.read_bytes()[:nbytes])


def beyond(path: Path, nbytes: int) -> set[str]:
    """Keys of a whole file whose bytes do not end before `nbytes`, by the format's definition."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    return {key for key, said in header.items() if key != "__metadata__" and start + said["data_offsets"][1] > nbytes}


def test_a_shard_that_ends_too_early_is_looked_at_up_to_its_end(cut: Path, tmp_path: Path) -> None:
    gone = beyond(whole(tmp_path / "whole") / GONE, (cut / GONE).stat().st_size)
    with pytest.raises(FormatError, match=rf"{GONE}: truncated: expected \d+ bytes.*`lazysd inspect` \(partial=True"):
        lazysd.open(cut)
    ckpt = lazysd.open(cut, partial=True)
    tensors = random_hf(EXPERTS, layers=3)
    assert 0 < len(gone) < len(lacking(cut))
    assert set(ckpt) == set(tensors) - gone
    assert all(torch.equal(ckpt[key].materialize().view(torch.int16), tensors[key].view(torch.int16)) for key in ckpt)
    (absent,) = ckpt.facts.absent
    assert (absent.names, absent.cut, absent.homes) == ((GONE,), (GONE,), dict.fromkeys(gone, GONE))
    assert f"1 of 3 shards are cut short, with {len(gone)} tensors: '{GONE}'" in ckpt.remarks[0]
    with pytest.raises(MissingTensorError, match=rf"its shard '{GONE}' ends before it; fetch it"):
        ckpt[next(iter(gone))]
    with pytest.raises(MissingShardError, match=rf"cannot save a part of a checkpoint: .*cut short.*{GONE}"):
        ckpt.save(tmp_path / "out")
    ckpt.select("model.embed*").save(tmp_path / "embed")  # needs nothing of the shard
    found = lazysd.compare(ckpt, lazysd.open(tmp_path / "whole"))
    assert {one.key for one in found.differences if one.kind == ABSENT} == gone
    assert found.num_equal == len(ckpt)


def test_every_length_of_a_file_alone(tmp_path: Path, golden: Path) -> None:
    """Whatever is cut off, what stands in front of the end is there, and nothing else; where nothing is, an error."""
    raw = next(iter(sorted((golden / "qwen3_moe_tiny").glob("*.safetensors")))).read_bytes()
    path, full = tmp_path / "model.safetensors", tmp_path / "full.safetensors"
    full.write_bytes(raw)
    start = 8 + int.from_bytes(raw[:8], "little")
    for nbytes in (0, 1, 7, 8, 9, start - 1, start, start + 1, len(raw) // 2, len(raw) - 1, len(raw)):
        path.write_bytes(raw[:nbytes])
        if nbytes < start:
            with pytest.raises(FormatError, match=r"truncated|length"):
                lazysd.open(path, partial=True)
            continue
        ckpt, gone = lazysd.open(path, partial=True), beyond(full, nbytes)
        assert set(ckpt) == set(lazysd.open(full)) - gone
        assert bool(ckpt.facts.absent) is bool(gone)


def test_a_shard_whose_header_is_cut_is_as_one_that_is_missing(cut: Path, tmp_path: Path) -> None:
    """With an index, which says what it held; without, nobody knows."""
    shorten(cut / GONE, 20)
    ckpt, gone = lazysd.open(cut, partial=True), lacking(cut)
    assert ckpt.facts.absent[0].homes == gone
    assert set(ckpt) == set(random_hf(EXPERTS, layers=3)) - set(gone)
    (cut / "model.safetensors.index.json").unlink()
    ckpt = lazysd.open(cut, partial=True)
    assert ckpt.facts.absent[0].homes is None
    with pytest.raises(MissingShardError, match="cut short"):
        ckpt.select("model.embed*").save(tmp_path / "out")


def test_one_cut_and_one_missing(cut: Path) -> None:
    (cut / "model-00003-of-00003.safetensors").unlink()
    (absent,) = lazysd.open(cut, partial=True).facts.absent
    assert f"2 of 3 shards are missing or cut short, with {len(absent.homes or ())} tensors" in str(absent)


def test_other_damage_is_no_part(cut: Path) -> None:
    raw = bytearray((cut / GONE).read_bytes())
    raw[9:12] = b"\x00\x00\x00"
    (cut / GONE).write_bytes(raw)
    with pytest.raises(FormatError, match=r"damaged"):
        lazysd.open(cut, partial=True)


def test_a_cut_shard_is_counted_once(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(cut)]) == 0
    num_tensors = len(random_hf(EXPERTS, layers=3))
    assert f" in 3 files, of {num_tensors} in 3\n" in capsys.readouterr().out


def test_commands_on_a_cut_shard(cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = whole(tmp_path / "whole")
    gone = sorted(beyond(other / GONE, (cut / GONE).stat().st_size))
    for code, words in (
        (0, ["inspect", cut]),
        (0, ["show", cut, "model.embed_tokens.weight"]),
        (0, ["stats", cut]),
        (1, ["diff", other, cut, "--no-progress"]),
        (3, ["show", cut, gone[0]]),
        (3, ["convert", cut, tmp_path / "out", "--to", "nemo"]),
        (3, ["verify", other, "--against", cut]),
    ):
        assert main([str(word) for word in words]) == code, words
        assert GONE in capsys.readouterr().err, words
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_torch_files_that_lacks_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The index of torch's files is read as that of safetensors is, where there are no safetensors."""
    model, snapshot = hub(tmp_path)
    for path in snapshot.glob("model*"):
        path.unlink()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    torch.save({"a": torch.ones(1)}, tmp_path / "one.bin")
    for name, raw in (
        ("pytorch_model.bin.index.json", json.dumps(index).encode()),
        ("pytorch_model-00001-of-00002.bin", (tmp_path / "one.bin").read_bytes()),
    ):
        blob = model / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.write_bytes(raw)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    assert main(["verify", str(snapshot)]) == 1
    assert "pytorch_model-00002-of-00002.bin: it is missing; fetch it" in capsys.readouterr().out


def test_one_shard_by_its_own_path_is_whole(part: Path) -> None:
    assert lazysd.open(part / "model-00001-of-00003.safetensors").facts.absent == ()


def test_begun_files_of_a_single_file_model(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert lazysd.open(tmp_path).facts.absent == ()
