"""Tiny Qwen3-MoE models of nemo-automodel on the CPU, and what ranks do with them through NeMo's own Checkpointer.

Each scenario runs in every rank. `OURS` and `THEIRS` name the adapter that a model saves and loads through.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

OURS, THEIRS = "ours", "theirs"
NUM_EXPERTS, HIDDEN, WIDTH, LAYERS = 12, 16, 12, 2
SIDES = [(OURS, OURS), (OURS, THEIRS), (THEIRS, OURS)]  # (who saves, who loads)


def warm() -> None:
    """Import what the scenarios need, once for all ranks."""
    import peft  # noqa: F401

    import lazysd.adapters.nemo  # noqa: F401


class _OnCpu:
    """torch as NeMo's model file sees it, whose constructor asks for a CUDA device by name."""

    cuda = SimpleNamespace(current_device=lambda: 0, is_available=lambda: False)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *args: Any) -> torch.device:
        return torch.device("cpu")


def hf_config() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=32, hidden_size=HIDDEN, intermediate_size=24, moe_intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=NUM_EXPERTS, num_experts_per_tok=2,
        decoder_sparse_step=1, mlp_only_layers=[], dtype="float32",
    )  # fmt: skip


def build(side: str, seed: int, lora: bool = False, mesh: Any = None) -> Any:
    """A model of NeMo with random weights, the same on all ranks; its experts spread over `mesh`, if there is one."""
    import nemo_automodel.components.models.qwen3_moe.model as module
    from nemo_automodel.components.models.common import BackendConfig

    from lazysd.adapters.nemo import Qwen3MoeStateDictAdapter

    backend = BackendConfig(
        attn="sdpa", linear="torch", rms_norm="torch", experts="torch", dispatcher="torch",
        fake_balanced_gate=False, enable_hf_state_dict_adapter=True,
    )  # fmt: skip
    with patch.object(module, "torch", _OnCpu()):
        model = module.Qwen3MoeForCausalLM(hf_config(), backend=backend)
    if lora:
        from nemo_automodel.components._peft.lora import apply_lora_to_linear_modules

        apply_lora_to_linear_modules(model, peft_config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if side == OURS:
        theirs = model.state_dict_adapter
        model.state_dict_adapter = Qwen3MoeStateDictAdapter(
            theirs.config, theirs.moe_config, theirs.backend, dtype=theirs.dtype
        )
    if mesh is not None:
        _spread(model, mesh)
    return model


def _spread(model: Any, mesh: Any) -> None:
    """Experts split over the mesh's `ep`, as NeMo's expert parallelism splits them."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for module in model.modules():
        for name in ("gate_and_up_projs", "down_projs"):
            if (held := getattr(module, name, None)) is not None:
                spread = distribute_tensor(held.data, mesh["ep"], [Shard(0)])
                setattr(module, name, torch.nn.Parameter(spread, requires_grad=held.requires_grad))


def peft_config() -> Any:
    from nemo_automodel.components._peft.lora import PeftConfig

    return PeftConfig(
        target_modules=["*q_proj", "*v_proj", "*experts*"], dim=3, alpha=6, use_memory_efficient_lora=False
    )


def checkpointer(folder: Path, mesh: Any = None, is_peft: bool = False) -> Any:
    from nemo_automodel.components.checkpoint.checkpointing import Checkpointer, CheckpointingConfig

    config = CheckpointingConfig(
        checkpoint_dir=str(folder), model_cache_dir=str(folder), save_consolidated=False, model_repo_id="x/y",
        is_peft=is_peft,
    )  # fmt: skip
    return Checkpointer(config, dp_rank=dist.get_rank(), tp_rank=0, pp_rank=0, moe_mesh=mesh)


def whole(model: Any, only: str = "") -> dict[str, torch.Tensor]:
    """Every parameter, gathered."""
    found = ((k, p.full_tensor() if hasattr(p, "full_tensor") else p) for k, p in model.named_parameters())
    return {key: value.detach() for key, value in found if only in key}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def expert_mesh() -> Any:
    if dist.get_world_size() == 1:
        return None
    return dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))


def save_and_resume(folder: Path) -> None:
    """What one adapter's Checkpointer saves, the other's loads, and the files are what a Qwen3-MoE checkpoint is."""
    mesh = expert_mesh()
    for number, (saver, loader) in enumerate(SIDES):
        place = folder / str(number)
        model = build(saver, seed=1, mesh=mesh)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpointer(place, mesh).save_model(model, str(place / "step"))
            other = build(loader, seed=2, mesh=mesh)
            checkpointer(place, mesh).load_model(other, str(place / "step" / "model"))
        assert_same(whole(other), whole(model))


def load_a_base_model(folder: Path) -> None:
    """The first load, from a checkpoint as the hub has it (written by safetensors, not by NeMo)."""
    from safetensors.torch import save_file

    mesh = expert_mesh()
    source = build(THEIRS, seed=3)
    base = folder / "base"
    if dist.get_rank() == 0:
        base.mkdir()
        save_file({k: v.contiguous() for k, v in source.state_dict_adapter.to_hf(source.state_dict()).items()},
                  base / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
        source.config.save_pretrained(base)
    dist.barrier()
    for side in (OURS, THEIRS):
        model = build(side, seed=4, mesh=mesh)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpointer(folder / side, mesh).load_model(model, str(base), is_init_step=True, use_checkpoint_id=True)
        assert_same(whole(model), whole(source))


def save_and_load_peft(folder: Path) -> None:
    """The adapter that NeMo's PEFT addon saves: loaded by NeMo through either adapter."""
    for number, (saver, loader) in enumerate(SIDES):
        place = folder / str(number)
        model = build(saver, seed=1, lora=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpointer(place, is_peft=True).save_model(model, str(place / "step"), peft_config=peft_config())
            other = build(loader, seed=2, lora=True)
            checkpointer(place, is_peft=True).load_model(other, str(place / "step" / "model"))
        assert_same(whole(other, "lora"), whole(model, "lora"))
