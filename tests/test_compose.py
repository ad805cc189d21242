"""New checkpoints composed of old ones: views that read nothing, saved like any other; and what closing does."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, by_hand, noise, random_hf, write
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.errors import ClosedCheckpointError
from lazysd.testing import assert_reads_only, recorded_reads

A = {f"a.{n}.weight": noise((6, 8), seed=n) for n in range(3)}
B = {f"b.{n}.weight": noise((6, 8), seed=9 + n) for n in range(3)} | {"a.0.weight": noise((6, 8), seed=99)}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[lazysd.Checkpoint, lazysd.Checkpoint]]:
    with lazysd.open(write(tmp_path / "a", A)) as a, lazysd.open(write(tmp_path / "b", B, shards=2)) as b:
        yield a, b


def test_views_are_those_of_dicts(pair: tuple[lazysd.Checkpoint, lazysd.Checkpoint]) -> None:
    a, b = pair

    def compose() -> dict[str, lazysd.Checkpoint]:
        return {
            "union": a | b,
            "union with a dict": a | {"a.1.weight": b["b.0.weight"], "new": torch.ones(2)},
            "select": (a | b).select("a.*", "b.0.*"),
            "select one": a.select("a.[12].weight"),
            "drop": (a | b).drop("*.0.*"),
            "rename by mapping": a.rename({"a.0.weight": "zero"}),
            "rename by function": a.rename(str.upper),
            "map": a.map(lambda tensor: tensor.T[1:3]),
            "map with keys": a.map(lambda key, tensor: tensor[int(key.split(".")[1])]),
            "map to torch": a.select("a.0.*").map(lambda tensor: torch.zeros(3)),
        }

    expected: dict[str, dict[str, torch.Tensor]] = {
        "union": {**A, **B},
        "union with a dict": {**A, "a.1.weight": B["b.0.weight"], "new": torch.ones(2)},
        "select": {**A, "a.0.weight": B["a.0.weight"], "b.0.weight": B["b.0.weight"]},
        "select one": {key: A[key] for key in ("a.1.weight", "a.2.weight")},
        "drop": {key: {**A, **B}[key] for key in ("a.1.weight", "a.2.weight", "b.2.weight", "b.1.weight")},
        "rename by mapping": {"zero": A["a.0.weight"], **{key: A[key] for key in list(A)[1:]}},
        "rename by function": {key.upper(): value for key, value in A.items()},
        "map": {key: value.T[1:3] for key, value in A.items()},
        "map with keys": {key: value[n] for n, (key, value) in enumerate(A.items())},
        "map to torch": {"a.0.weight": torch.zeros(3)},
    }
    made = assert_reads_only(compose)
    for name, wanted in expected.items():
        assert list(made[name]) == list(dict(a) | dict(b) if name == "union" else wanted), name
        assert_same(made[name], wanted)
    with pytest.raises(ValueError, match="two tensors the name 'x'"):
        a.rename(lambda key: "x")


def composed(a: lazysd.Checkpoint, b: lazysd.Checkpoint) -> tuple[lazysd.Checkpoint, dict[str, torch.Tensor]]:
    """Two files, a tensor in memory and a computed one, in one graph; and what plain torch makes of the same."""
    average = (A["a.2.weight"].float() + 1).nan_to_num()
    mixed = (a.select("a.1.*") | {
        "stacked": lazysd.stack([a["a.0.weight"], b["b.1.weight"].T.reshape(6, 8), lazysd.from_torch(A["a.2.weight"])]),
        "wide": torch.cat([b["b.2.weight"], a["a.0.weight"]], dim=1)[:, ::3],
        "average": average,
        "wider": b["b.0.weight"].to(torch.float32),
    }).rename(lambda key: "new." + key)  # fmt: skip
    return mixed, {
        "new.a.1.weight": A["a.1.weight"],
        "new.stacked": torch.stack([A["a.0.weight"], B["b.1.weight"].T.reshape(6, 8), A["a.2.weight"]]),
        "new.wide": torch.cat([B["b.2.weight"], A["a.0.weight"]], dim=1)[:, ::3],
        "new.average": average,
        "new.wider": B["b.0.weight"].to(torch.float32),
    }


def test_a_composition_is_saved_like_any_other(
    pair: tuple[lazysd.Checkpoint, lazysd.Checkpoint], tmp_path: Path
) -> None:
    made, expected = composed(*pair)
    with recorded_reads() as noted:
        plan = made.save(tmp_path / "out", max_shard_size=300)
    assert len(plan.shards) > 1
    assert sum(nbytes for _, _, nbytes in noted) == plan.read_nbytes
    written: dict[str, torch.Tensor] = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(shard)
    assert_same(written, expected)
    assert_same(lazysd.open(tmp_path / "out"), made)


def test_two_converted_checkpoints_in_one(tmp_path: Path) -> None:
    """Layer 0 of one model, layer 1 of another, saved in a third layout."""
    hf = [random_hf(layers=2), {key: tensor.flip(-1).clone() for key, tensor in random_hf(layers=2).items()}]
    ckpts = [lazysd.open(write(tmp_path / str(n), tensors, config={"num_experts": 3})) for n, tensors in enumerate(hf)]
    both = ckpts[0].convert("nemo").select("*.layers.0.*") | ckpts[1].convert("nemo").select("*.layers.1.*")
    both.save(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for layer in (0, 1):
        for key, bits in by_hand(hf[layer], 3, layer)["nemo"].items():
            assert torch.equal(found[key].view(torch.int16), bits)


def test_pickles_and_copies_hold_no_data(pair: tuple[lazysd.Checkpoint, lazysd.Checkpoint]) -> None:
    made, expected = composed(*pair)
    from_files = made.drop("new.average", "new.stacked")
    for again in assert_reads_only(
        lambda: (pickle.loads(pickle.dumps(from_files)), copy.deepcopy(from_files), copy.copy(from_files))
    ):
        assert list(again) == list(from_files)
        assert_same(again, {key: expected[key] for key in from_files})


def test_a_pickle_opens_its_files_in_another_process(
    pair: tuple[lazysd.Checkpoint, lazysd.Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(pair[0]["a.1.weight"].T[2]))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).view(__import__('torch').int16).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.pkl")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(A["a.1.weight"].T[2].contiguous().view(torch.int16).tolist())


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_closing(tmp_path: Path, io: str) -> None:
    with lazysd.open(write(tmp_path / "src", random_hf(), config={"num_experts": 3}), io=io) as ckpt:
        plain, grouped = ckpt["model.embed_tokens.weight"], ckpt.convert("nemo")
        views = (ckpt.select("*"), ckpt | {}, grouped, ckpt.map(lambda t: t[:1]), ckpt.rename(str.upper))
        held = plain.materialize()  # with mmap, a view of the file
        before = held.clone()
    assert_same({"w": held}, {"w": before})
    held.zero_()
    assert not held.any()
    assert (plain.shape, len(ckpt), plain.reads()[0][2]) == (before.shape, 18 - 6, before.nbytes)  # still answers
    for use in (
        plain.materialize,
        plain[2:4].materialize,
        grouped["model.layers.0.mlp.experts.down_projs"].materialize,
        *(next(iter(view.values())).materialize for view in views),
        lambda: next(ckpt.iter_tensors()),
        lambda: ckpt.save(tmp_path / "out"),
        lambda: plain + 1,
        lambda: lazysd.load_into(torch.nn.Embedding(7, 4), {"weight": plain}),
    ):
        with pytest.raises(ClosedCheckpointError, match=r"closed checkpoint; open it again"):
            use()
    assert not (tmp_path / "out").exists()
    again = lazysd.open(tmp_path / "src")["model.embed_tokens.weight"]
    assert_same({"w": again}, {"w": before})  # what was written to the view never reached the file


def test_closing_one_of_two(pair: tuple[lazysd.Checkpoint, lazysd.Checkpoint]) -> None:
    a, b = pair
    both = a | b
    a.close()
    with pytest.raises(ClosedCheckpointError):
        both["a.1.weight"].materialize()
    assert_same({"w": both["b.1.weight"]}, {"w": B["b.1.weight"]})
    both.close()
    with pytest.raises(ClosedCheckpointError):
        b["b.1.weight"].materialize()


def test_every_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write(tmp_path / "src", random_hf(layers=2), shards=4, config={"num_experts": 3})
    ckpt = lazysd.open(src)
    opened: list[str] = []
    system_open = os.open

    def noting(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return system_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", noting)
    nemo = ckpt.convert("nemo")
    assert opened == []
    for _ in range(3):
        for node in (*ckpt.values(), *nemo.values()):
            node.materialize()
            node[:1].materialize()
        dict(nemo.iter_tensors())
    assert sorted(opened) == sorted(str(path) for path in src.glob("*.safetensors"))


def test_an_edited_view_stays_in_this_process(tmp_path: Path) -> None:
    """Views of one mapped tensor share memory, as tensors of one storage do; saves and conversions read the file."""
    save_file({"w": torch.arange(12.0).reshape(3, 4)}, tmp_path / "m.safetensors")
    ckpt = lazysd.open(tmp_path / "m.safetensors")
    ckpt["w"].materialize().fill_(-1)
    expected = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(ckpt["w"].T.materialize(), expected.T)
    assert torch.equal(dict(ckpt.iter_tensors())["w"], expected)
    out = torch.empty(3, 4)
    assert torch.equal(ckpt["w"].materialize(out=out), expected)
    ckpt.save(tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], expected)
