"""Experts over a DeviceMesh, on 2 and 3 gloo processes: against nemo-automodel in the same processes, bit by bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoints import assert_same, bits, by_hand, expert_key, random_hf, write
from gloo import run_ranks
from quantised_experts import experts as quantised_experts

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.mesh.tensors import LazyDTensor, split_experts
from lazysd.move.lanes import host
from lazysd.nemo.adapter import Qwen3MoeStateDictAdapter

pytestmark = pytest.mark.dist
H, I = 36, 24  # noqa: E741
HEAD = "model.layers.{}.mlp.experts."


def test_every_expert_has_one_rank() -> None:
    for experts in range(9):
        for ranks in range(1, 5):
            shares = [split_experts(experts, ranks, rank) for rank in range(ranks)]
            assert [e for share in shares for e in share] == list(range(experts))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def moe(E: int) -> SimpleNamespace:
    return SimpleNamespace(n_routed_experts=E, moe_inter_dim=I, dim=H, expert_activation="swiglu", expert_bias=False)


def warm() -> None:
    """What gloo.py imports once for all ranks: it takes seconds."""
    adapters(1)


def adapters(E: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Qwen3MoeStateDictAdapter]:
    from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter as Theirs

    backend = SimpleNamespace(dispatcher="torch", experts="torch")
    return Theirs(None, moe(E), backend, dtype=dtype), Qwen3MoeStateDictAdapter(None, moe(E), backend, dtype)


def mesh(**sizes: int) -> Any:
    return dist.init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def assert_same_locals(ours: Any, theirs: Any, global_shapes: bool = True) -> None:
    """The same keys; DTensors on equal meshes, placed alike, with the same bits on this rank; the rest as it is."""
    assert set(ours) == set(theirs)
    for key, wanted in theirs.items():
        found = ours[key]
        assert type(found) is type(wanted), key
        if hasattr(wanted, "placements"):
            assert tuple(found.placements) == tuple(wanted.placements), key
            assert found.device_mesh.mesh_dim_names == wanted.device_mesh.mesh_dim_names, key
            assert found.shape == wanted.shape or not global_shapes, key
            found, wanted = found.to_local(), wanted.to_local()
        assert found.shape == wanted.shape, key
        assert found.dtype == wanted.dtype, key
        assert torch.equal(bits(found), bits(wanted)), key


@contextmanager
def counted_reads() -> Iterator[list[tuple[int, int]]]:
    """(offset, nbytes) of every read that the system is asked for."""
    calls: list[tuple[int, int]] = []
    preadv = os.preadv

    def counting(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        done = preadv(fd, buffers, offset, *flags)
        calls.append((offset, done))
        return done

    def gathering(self: Any, fd: int) -> Any:
        calls.extend((offset, len(buffer)) for buffer, offset in self)
        return by(self, fd)

    by = host._Gather.by
    os.preadv, host._Gather.by = counting, gathering  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        os.preadv, host._Gather.by = preadv, by  # type: ignore[method-assign]


def rank_says(value: Any) -> list[Any]:
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, value)
    return told


# What each rank runs.


def from_hf_on_eager_tensors(folder: Path) -> None:
    for E in (6, 5, 3):
        theirs, ours = adapters(E)
        hf = random_hf(E, H, I, 2)
        on = mesh(ep=dist.get_world_size())
        made = ours.from_hf(hf, device_mesh=on)
        divides = E % dist.get_world_size() == 0  # otherwise NeMo's DTensor multiplies this rank's shape
        assert_same_locals(made, theirs.from_hf(dict(hf), device_mesh=on), divides)
        for layer in range(2):
            for key, whole in by_hand(hf, E, layer)["nemo"].items():
                assert made[key].shape == whole.shape
        for key in hf:
            if ".experts." not in key:
                assert made[key] is hf[key]


def to_hf_on_dtensors(folder: Path) -> None:
    for E in (6, 5):
        theirs, ours = adapters(E)
        hf = random_hf(E, H, I, 2)
        native = ours.from_hf(hf, device_mesh=mesh(ep=dist.get_world_size()))
        made = ours.to_hf(native)
        assert_same_locals(made, theirs.to_hf(native))
        mine = split_experts(E, dist.get_world_size(), dist.get_rank())
        assert_same({k: t for k, t in made.items() if ".experts." in k}, {
            expert_key(e, name, layer): hf[expert_key(e, name, layer)]
            for layer in range(2) for e in mine for name in ("gate", "up", "down")
        })  # fmt: skip
        pattern = r"model\.layers\.0.*down"
        assert_same_locals(ours.to_hf(native, exclude_key_regex=pattern), theirs.to_hf(native, pattern))
        for fqn, tensor in native.items():
            pairs = ours.convert_single_tensor_to_hf(fqn, tensor)
            wanted = theirs.convert_single_tensor_to_hf(fqn, tensor)
            assert [key for key, _ in pairs] == [key for key, _ in wanted]
            assert_same_locals(dict(pairs), dict(wanted))
        again = ours.from_hf(ours.to_hf(native), device_mesh=mesh(ep=dist.get_world_size()))
        assert_same_locals(again, native)


def experts_beside_other_dimensions(folder: Path) -> None:
    """ep_shard and ep_replicate: cut or repeated; and to_hf, then from_hf, as a training run does."""
    n, E = dist.get_world_size(), 6
    for sizes in ({"ep_replicate": n, "ep": 1}, {"ep_shard": n, "ep": 1}, {"ep_shard": 1, "ep": n}):
        theirs, ours = adapters(E)
        hf, on = random_hf(E, H, I, 2), mesh(**sizes)
        made = ours.from_hf(hf, device_mesh=on)
        for key, whole in by_hand(hf, E)["nemo"].items():
            tensor = made[key]
            assert tensor.shape == whole.shape, key
            parts = sizes.get("ep_shard", 1)
            wanted = whole.tensor_split(parts, dim=1)[dist.get_rank() % parts] if parts > 1 else whole
            wanted = wanted[split_experts(E, sizes["ep"], dist.get_rank() % sizes["ep"])[0] :][
                : tensor.to_local().shape[0]
            ]
            assert torch.equal(bits(tensor.to_local()), wanted.contiguous()), (sizes, key)
        there = theirs.to_hf(made)
        assert_same_locals(ours.to_hf(made), there)
        assert_same_locals(ours.from_hf(there, device_mesh=on), theirs.from_hf(dict(there), device_mesh=on))


def only_own_experts_are_required(folder: Path) -> None:
    E = 5
    theirs, ours = adapters(E)
    on = mesh(ep=dist.get_world_size())
    mine = split_experts(E, dist.get_world_size(), dist.get_rank())
    hf = random_hf(E, H, I, 2)
    own = {key: tensor for key, tensor in hf.items() if ".experts." not in key or int(key.split(".")[5]) in mine}
    assert len(own) < len(hf)
    assert_same_locals(ours.from_hf(own, device_mesh=on), theirs.from_hf(dict(own), device_mesh=on), False)
    lost = expert_key(mine[-1], "up", 1)
    del own[lost]
    for adapter, kind in ((theirs, RuntimeError), (ours, MissingExpertsError)):
        total = 2 * 3 * len(mine)
        with pytest.raises(kind, match=rf"\(rank {dist.get_rank()}\): 1/{total} required .*{lost}"):
            adapter.from_hf(dict(own), device_mesh=on)


def each_rank_reads_its_experts_only(folder: Path) -> None:
    n, E = dist.get_world_size(), 5
    hf = random_hf(E, H, I, 2)
    if dist.get_rank() == 0:
        write(folder / "hf", hf, shards=2, config={"model_type": "qwen3_moe", "num_experts": E})
    dist.barrier()
    on, ours = mesh(ep=n), adapters(E)[1]
    ckpt = lazysd.open(folder / "hf", io="pread")
    converted = ckpt.convert("nemo", mesh=on)
    adapted = ours.from_hf(ckpt, device_mesh=on)
    assert isinstance(adapted, lazysd.Checkpoint)
    wanted = ours.from_hf(hf, device_mesh=on)
    for native in (converted, adapted):
        grouped = {key: node for key, node in native.items() if isinstance(node, LazyDTensor)}
        assert len(grouped) == 4
        assert all(native[key] is ckpt[key] for key in native if key not in grouped)
        with counted_reads() as calls:
            made = {key: node.materialize() for key, node in grouped.items()}
        assert_same_locals(made, {key: wanted[key] for key in made})
        promised = sum(nbytes for node in grouped.values() for _, _, nbytes in node.reads())
        share = len(split_experts(E, n, dist.get_rank())) * 2 * 3 * H * I * 2
        assert promised == share
        assert sum(nbytes for _, nbytes in calls) == share
        whole = sum(tensor.nbytes for key, tensor in hf.items() if ".experts." in key)
        assert sum(rank_says(share)) == whole
    back = ours.to_hf(adapted)  # lazy all the way, and this rank's experts are the file's own leaves
    assert all(back[key].op == ckpt[key].op for key in back)
    out = torch.distributed.tensor.zeros(
        5, H, 2 * I, device_mesh=on, placements=[torch.distributed.tensor.Shard(0)], dtype=torch.bfloat16
    )
    node = converted[HEAD.format(0) + "gate_and_up_projs"]
    if out.to_local().shape == node.local.shape:  # torch's chunks are NeMo's shares here, or not
        node.materialize(out=out)
        assert torch.equal(bits(out.to_local()), bits(wanted[HEAD.format(0) + "gate_and_up_projs"].to_local()))


def scales_go_with_their_experts(folder: Path) -> None:
    E = 5
    tensors, config = quantised_experts("fp8 square", E=E)
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, config=config)
    made, whole = source.convert("nemo", mesh=mesh(ep=dist.get_world_size())), source.convert("nemo")
    spread = {key for key, node in made.items() if isinstance(node, LazyDTensor)}
    assert spread == {key for key in made if ".experts." in key}
    assert len(spread) == 4
    mine = split_experts(E, dist.get_world_size(), dist.get_rank())
    for key in spread:
        local = made[key].materialize().to_local()
        assert torch.equal(local.view(torch.uint8), whole[key][mine.start : mine.stop].materialize().view(torch.uint8))


def rows_of_an_expert_over_ep_shard(folder: Path) -> None:
    """Where a rank's part of a row is large, it reads that part only."""
    n, wide = dist.get_world_size(), 18_432
    hf = random_hf(2, wide, 4, dtype=torch.float32)
    if dist.get_rank() == 0:
        write(folder / "hf", hf, config={"model_type": "qwen3_moe", "num_experts": 2})
    dist.barrier()
    node = lazysd.open(folder / "hf", io="pread").convert("nemo", mesh=mesh(ep_shard=n, ep=1))[
        HEAD.format(0) + "gate_and_up_projs"
    ]
    with counted_reads() as calls:
        made = node.materialize()
    whole = by_hand(hf, 2)["nemo"][HEAD.format(0) + "gate_and_up_projs"]
    assert torch.equal(bits(made.to_local()), whole.chunk(n, dim=1)[dist.get_rank()].contiguous())
    assert sum(nbytes for _, nbytes in calls) * n == whole.nbytes == n * sum(nbytes for *_, nbytes in node.reads())


def block_fp8_on_a_mesh(folder: Path) -> None:
    n, E, big = dist.get_world_size(), 5, 256
    config = moe(E)
    config.moe_inter_dim = config.dim = big
    ours = Qwen3MoeStateDictAdapter(None, config, None, torch.float32)
    generator = torch.Generator().manual_seed(3)
    hf = {
        expert_key(e, name): torch.randn(big, big, generator=generator)
        for e in range(E)
        for name in ("gate", "up", "down")
    }
    packed = ours.to_hf(ours.from_hf(hf), quantization=True)
    assert packed[expert_key(4, "up")].dtype == torch.float8_e4m3fn
    opened = {}  # by hand: codes times the scale of their block of 128 x 128
    for key in hf:
        scale = packed[key + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
        opened[key] = packed[key].float() * scale
    on = mesh(ep=n)
    mine = split_experts(E, n, dist.get_rank())
    own = {key: tensor for key, tensor in packed.items() if int(key.split(".")[5]) in mine}
    assert_same_locals(ours.from_hf(own, device_mesh=on), ours.from_hf(opened, device_mesh=on))
    lazy = ours.from_hf({key: lazysd.from_torch(tensor) for key, tensor in packed.items()}, device_mesh=on)
    assert_same_locals({key: node.materialize() for key, node in lazy.items()}, ours.from_hf(opened, device_mesh=on))
    sharded = ours.to_hf(ours.from_hf(hf, device_mesh=on), quantization=True)
    assert_same(sharded, own)


def lora_beside_experts_on_a_mesh(folder: Path) -> None:
    E, r = 6, 3
    theirs, ours = adapters(E, torch.float32)
    at = "base_model.model." + HEAD.format(1)
    torch.manual_seed(0)
    lora = {
        at + "lora_gate_and_up_A": torch.randn(E, H, r), at + "lora_gate_and_up_B": torch.randn(E, r, 2 * I),
        at + "lora_down_A": torch.randn(E, I, r), at + "lora_down_B": torch.randn(E, r, H),
    }  # fmt: skip
    on = mesh(ep=dist.get_world_size())
    folded = theirs.to_hf(lora)
    assert_same_locals(ours.from_hf(folded, device_mesh=on), theirs.from_hf(dict(folded), device_mesh=on))
    spread = {
        key: torch.distributed.tensor.distribute_tensor(tensor, on, [torch.distributed.tensor.Shard(0)])
        for key, tensor in lora.items()
    }
    whole = {
        key: tensor.full_tensor() for key, tensor in theirs.to_hf(spread).items()
    }  # NeMo leaves gathering to torch
    assert_same(ours.to_hf(spread, peft_layout="peft-0.19"), whole)
    apart = theirs.to_hf(spread, v4_compatible=True)
    assert_same_locals(ours.to_hf(spread, v4_compatible=True), apart)


def what_a_spread_tensor_refuses(folder: Path) -> None:
    ckpt = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in random_hf(6, H, I).items()})
    node = ckpt.convert("nemo", mesh=mesh(ep=dist.get_world_size()))[HEAD.format(0) + "down_projs"]
    with pytest.raises(LayoutError, match="spread over ranks; index its part"):
        node[0]
    with pytest.raises(AttributeError, match=r"no 'permute'; its part on this rank has: \.local"):
        node.permute(0, 2, 1)
    with pytest.raises(ValueError, match="expected"):
        node.materialize(out=torch.empty(6, I, H, dtype=torch.bfloat16))
    with pytest.raises(LayoutError, match=r"has the dimensions ep, ep_shard, ep_replicate; this one has \['tp'\]"):
        ckpt.convert("nemo", mesh=mesh(tp=dist.get_world_size()))
    with pytest.raises(LayoutError, match="groups no experts"):
        ckpt.convert("hf", mesh=mesh(ep=dist.get_world_size()))
    for use in (ckpt.convert("nemo", mesh=node.device_mesh).plan, lambda: torch.stack([node, node]).materialize()):
        with pytest.raises(LayoutError, match=r"is spread over ranks, and this one holds only a part \(\.local\)"):
            use()
    assert "Shard(dim=0)" in repr(node) or "S(0)" in repr(node)


SCENARIOS = [
    from_hf_on_eager_tensors,
    to_hf_on_dtensors,
    experts_beside_other_dimensions,
    only_own_experts_are_required,
    each_rank_reads_its_experts_only,
    scales_go_with_their_experts,
    rows_of_an_expert_over_ep_shard,
    block_fp8_on_a_mesh,
    lora_beside_experts_on_a_mesh,
    what_a_spread_tensor_refuses,
]


@pytest.fixture(scope="module", params=[2, 3])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    pytest.importorskip("nemo_automodel")
    names = [scenario.__name__ for scenario in SCENARIOS]
    return run_ranks("test_mesh", names, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_ranks(reports: dict[str, list[str]], name: str) -> None:
    assert not any(reports[name]), "\n".join(reports[name])
