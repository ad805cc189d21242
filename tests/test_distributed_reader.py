"""dcp.load through LazyStorageReader: sharded modules filled from an hf checkpoint, on 2 and 3 gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import bits, by_hand, random_hf, write
from gloo import run_ranks
from test_mesh import counted_reads
from torch import nn

import lazysd
from lazysd.distributed import LazyStorageReader

pytestmark = [pytest.mark.dist, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
E, H, I = 5, 32, 24  # noqa: E741
HEAD = "model.layers.0.mlp.experts."


class GroupedExperts(nn.Module):
    """The parameters of NeMo's grouped experts, and nothing that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_and_up_projs = nn.Parameter(torch.zeros(E, H, 2 * I, dtype=torch.bfloat16))
        self.down_projs = nn.Parameter(torch.zeros(E, I, H, dtype=torch.bfloat16))


class Model(nn.Module):
    """Named as a checkpoint's keys: model.layers.0.mlp.experts.…, and a router beside the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        layer = nn.Module()
        layer.mlp = nn.Module()
        layer.mlp.gate = nn.Linear(H, E, bias=False, dtype=torch.bfloat16)
        layer.mlp.experts = GroupedExperts()
        self.model.layers = nn.ModuleList([layer])


def test_one_process_without_a_process_group(tmp_path: Path) -> None:
    hf = random_hf(E, H, I)
    ckpt = lazysd.open(write(tmp_path / "hf", hf, shards=2, config={"num_experts": E})).convert("nemo")
    model = Model()
    dcp.load(state := model.state_dict(), storage_reader=LazyStorageReader(ckpt), no_dist=True)
    model.load_state_dict(state)
    for key, whole in by_hand(hf, E)["nemo"].items():
        assert torch.equal(bits(state[key]), whole.contiguous())
        assert torch.equal(bits(model.get_parameter(key)), whole.contiguous())
    assert torch.equal(bits(state["model.layers.0.mlp.gate.weight"]), bits(hf["model.layers.0.mlp.gate.weight"]))


def test_what_the_destination_decides(tmp_path: Path) -> None:
    """Values are cast to the destination's dtype, into whatever strides it has; torch tensors may be the source."""
    values = torch.randn(3, 4)
    state = {"a": torch.zeros(4, 3, dtype=torch.bfloat16).T, "b": torch.zeros(3, 4, dtype=torch.complex64).conj()}
    reader = LazyStorageReader({"a": values, "b": lazysd.from_torch(values.to(torch.complex64))})
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert torch.equal(state["a"], values.bfloat16())
    assert torch.equal(state["b"].resolve_conj(), values.to(torch.complex64))


def test_keys_and_shapes_that_do_not_fit(tmp_path: Path) -> None:
    reader = LazyStorageReader({"a": torch.zeros(2)})
    with pytest.raises(dcp.api.CheckpointException, match="Missing key in checkpoint state_dict: b"):
        dcp.load({"b": torch.zeros(2)}, storage_reader=reader, no_dist=True)
    with pytest.raises(dcp.api.CheckpointException, match="Missing key in checkpoint state_dict: step"):
        dcp.load({"a": torch.zeros(2), "step": 3}, storage_reader=reader, no_dist=True)
    with pytest.raises(dcp.api.CheckpointException, match="Size mismatch"):
        dcp.load({"a": torch.zeros(3)}, storage_reader=reader, no_dist=True)
    source = write(tmp_path / "hf", {"a": torch.zeros(2)})
    lazy = LazyStorageReader(lazysd.open(source))
    (source / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(dcp.api.CheckpointException, match="was modified since the checkpoint was opened"):
        dcp.load({"a": torch.zeros(2)}, storage_reader=lazy, no_dist=True)


# What each rank runs.


def opened(folder: Path, hf: dict[str, torch.Tensor], num_experts: int = E) -> lazysd.Checkpoint:
    if dist.get_rank() == 0:
        write(folder / "hf", hf, shards=2, config={"model_type": "qwen3_moe", "num_experts": num_experts})
    dist.barrier()
    return lazysd.open(folder / "hf", io="pread").convert("nemo")


def fully_shard_on_axis_0(folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    hf = random_hf(E, H, I)
    ckpt, model = opened(folder, hf), Model()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    state = model.state_dict()
    with counted_reads() as calls:
        dcp.load(state, storage_reader=LazyStorageReader(ckpt))
    share = sum(tensor.to_local().nbytes for tensor in state.values())
    assert sum(nbytes for _, nbytes in calls) == share
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, share)
    assert sum(told) == sum(tensor.numel() * 2 for tensor in state.values())
    for key, parameter in model.named_parameters():  # the module itself is filled, not a copy
        wanted = by_hand(hf, E)["nemo"].get(key)
        wanted = bits(hf[key]) if wanted is None else wanted.contiguous()
        assert torch.equal(bits(parameter.full_tensor()), wanted), key


def other_axes_and_copies(folder: Path) -> None:
    from torch.distributed.tensor import Replicate, Shard, zeros

    hf = random_hf(E, H, I)
    ckpt, whole = opened(folder, hf), by_hand(hf, E)["nemo"]
    on = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        state = {
            key: zeros(*wanted.shape, dtype=torch.bfloat16, device_mesh=on, placements=[placement])
            for key, wanted in whole.items()
        }
        with counted_reads() as calls:
            dcp.load(state, storage_reader=LazyStorageReader(ckpt))
        for key, wanted in whole.items():
            assert torch.equal(bits(state[key].full_tensor()), wanted.contiguous()), (placement, key)
        # rows of a few bytes are read with the gaps between them, never more than the experts they belong to
        assert sum(nbytes for _, nbytes in calls) <= sum(wanted.nbytes for wanted in whole.values())


def boxes_of_long_rows_are_read_alone(folder: Path) -> None:
    """Shard(1) of grouped gate and up is a stretch of every source row; Shard(2) is some of the rows."""
    from torch.distributed.tensor import Shard, zeros

    n, wide, inner = dist.get_world_size(), 18_432, 6
    hf = random_hf(2, wide, inner, dtype=torch.float32)
    ckpt, key = opened(folder, hf, 2), HEAD + "gate_and_up_projs"
    whole = by_hand(hf, 2)["nemo"][key]
    on = dist.init_device_mesh("cpu", (n,))
    for axis in (1, 2):
        tensor = zeros(*whole.shape, dtype=torch.float32, device_mesh=on, placements=[Shard(axis)])
        with counted_reads() as calls:
            dcp.load({key: tensor}, storage_reader=LazyStorageReader(ckpt))
        assert torch.equal(bits(tensor.to_local()), whole.chunk(n, dim=axis)[dist.get_rank()].contiguous())
        assert sum(nbytes for _, nbytes in calls) == tensor.to_local().nbytes


def a_mesh_of_two_dimensions(folder: Path) -> None:
    from torch.distributed.tensor import Replicate, Shard, zeros

    hf = random_hf(E, H, I)
    ckpt, whole = opened(folder, hf), by_hand(hf, E)["nemo"]
    on = dist.init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("replicate", "shard"))
    for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(1)], [Shard(1), Shard(0)]):
        state = {
            key: zeros(*wanted.shape, dtype=torch.bfloat16, device_mesh=on, placements=placements)
            for key, wanted in whole.items()
        }
        dcp.load(state, storage_reader=LazyStorageReader(ckpt))
        for key, wanted in whole.items():
            assert torch.equal(bits(state[key].full_tensor()), wanted.contiguous()), (placements, key)


def a_checkpoint_on_a_mesh_is_refused(folder: Path) -> None:
    on = dist.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    source = opened(folder, random_hf(E, H, I))
    spread = source.convert("hf").convert("nemo", mesh=on)
    with pytest.raises(ValueError, match=r"convert without mesh=, dcp\.load asks for each rank's part"):
        LazyStorageReader(spread)


SCENARIOS = [
    fully_shard_on_axis_0,
    other_axes_and_copies,
    boxes_of_long_rows_are_read_alone,
    a_mesh_of_two_dimensions,
    a_checkpoint_on_a_mesh_is_refused,
]


@pytest.fixture(scope="module", params=[2, 3])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    names = [scenario.__name__ for scenario in SCENARIOS]
    return run_ranks("test_distributed_reader", names, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_ranks(reports: dict[str, list[str]], name: str) -> None:
    assert not any(reports[name]), "\n".join(reports[name])
