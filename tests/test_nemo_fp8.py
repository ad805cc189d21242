"""NeMo's adapter and FP8: what `to_hf(quantization=True)` writes, transformers loads; `from_hf` honours the scales."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import bits
from safetensors.torch import save_file

import lazysd
from lazysd.nemo.adapter import Qwen3MoeStateDictAdapter
from lazysd.nemo.families import DeepSeekV3StateDictAdapter

transformers = pytest.importorskip("transformers")
SIZE, E = 128, 4  # whole blocks: transformers reads no others
SAME: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": SIZE, "intermediate_size": SIZE, "moe_intermediate_size": SIZE,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2,
    "pad_token_id": 0,
}  # fmt: skip


def qwen3_moe() -> tuple[Any, Any]:
    config = transformers.Qwen3MoeConfig(**SAME, head_dim=32, num_experts=E, decoder_sparse_step=1, mlp_only_layers=[0])
    return transformers.Qwen3MoeForCausalLM(config), Qwen3MoeStateDictAdapter


def deepseek_v3() -> tuple[Any, Any]:
    config = transformers.DeepseekV3Config(
        **SAME, n_routed_experts=E, first_k_dense_replace=1, n_shared_experts=1, q_lora_rank=SIZE, kv_lora_rank=SIZE,
        qk_rope_head_dim=SIZE, qk_nope_head_dim=32, v_head_dim=32, n_group=2, topk_group=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config), DeepSeekV3StateDictAdapter


def per_expert(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' state dict in memory under the keys of its files, by hand."""
    made: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        at, _, name = key.rpartition(".")
        if name not in ("gate_up_proj", "down_proj"):
            made[key] = tensor
        for e in range(E) if name in ("gate_up_proj", "down_proj") else ():
            halves = {"gate_proj": tensor[e, :SIZE], "up_proj": tensor[e, SIZE:]}
            for word, part in (halves if name == "gate_up_proj" else {name: tensor[e]}).items():
                made[f"{at}.{e}.{word}.weight"] = part
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [qwen3_moe, deepseek_v3])
def test_transformers_loads_what_is_written(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, kind = make()
    model.bfloat16().save_pretrained(tmp_path / "plain")
    hf = {key: node.materialize() for key, node in lazysd.open(tmp_path / "plain").items()}
    moe = SimpleNamespace(n_routed_experts=E, moe_inter_dim=SIZE, expert_activation="swiglu", expert_bias=False)
    adapter = kind(model.config, moe, None, dtype=torch.bfloat16)
    few = adapter.to_hf(adapter.from_hf(dict(hf)), quantization=True)
    coded = {key for key, tensor in few.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {key + "_scale_inv" for key in coded} == {key for key in few if key.endswith("_scale_inv")}
    assert len(coded) >= 3 * E + 8
    said = json.loads((tmp_path / "plain/config.json").read_text())
    plain = [key.removesuffix(".weight") for key in few if key.endswith("_proj.weight") and key not in coded]
    said["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    said["quantization_config"]["modules_to_not_convert"] = ["lm_head", *plain]
    (tmp_path / "few").mkdir()
    (tmp_path / "few/config.json").write_text(json.dumps(said))
    contiguous = {key: tensor.contiguous() for key, tensor in few.items()}
    save_file(contiguous, tmp_path / "few/model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.bfloat16)
    decoded = per_expert(theirs.state_dict())
    assert sum(not torch.equal(bits(decoded[key]), bits(hf[key])) for key in coded) == len(coded)  # it was rounded
    read, wanted = (adapter.from_hf(tensors) for tensors in (dict(few), {key: decoded[key] for key in hf}))
    assert read.keys() == wanted.keys()
    for key in wanted:
        if "e_score_correction_bias" not in key:  # which transformers widens
            assert torch.equal(bits(read[key]), bits(wanted[key])), key
