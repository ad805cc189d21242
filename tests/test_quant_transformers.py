"""Tiny quantised models: what transformers decodes as it loads is what it loads after lazysd has decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same

import lazysd
from lazysd.quantization import dequantize, quantize

transformers = pytest.importorskip("transformers")


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        num_hidden_layers=2, num_local_experts=4, hidden_size=64, intermediate_size=32, vocab_size=50,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts_per_tok=2, sliding_window=8,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def deepseek() -> Any:
    config = transformers.DeepseekV3Config(
        num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        hidden_size=64, intermediate_size=48, moe_intermediate_size=32, vocab_size=50, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=16, qk_nope_head_dim=16,
        v_head_dim=16, n_group=2, topk_group=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "scheme", "keys", "settings"),
    [
        (gpt_oss, "mxfp4", ["*.experts.gate_up_proj", "*.experts.down_proj"], {}),
        (gpt_oss, "mxfp4", None, {}),  # attention stays plain: transformers reads no blocks of it
        (deepseek, "fp8-blocks", None, {"weight_block_size": [16, 16]}),
        (deepseek, "fp8-blocks", None, {"weight_block_size": [16, 32], "scale_fmt": "ue8m0"}),
    ],
)
def test_a_quantised_model_is_the_one_transformers_loads(
    tmp_path: Path, make: Any, scheme: str, keys: list[str] | None, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = make().bfloat16().eval()
    model.save_pretrained(tmp_path / "plain")
    quantize(lazysd.open(tmp_path / "plain"), scheme, keys, **settings).save(tmp_path / "few")
    said = json.loads((tmp_path / "few/config.json").read_text())["quantization_config"]
    assert not [name for name in said["modules_to_not_convert"] if name.endswith("bias")]
    theirs = load(tmp_path / "few")
    dequantize(lazysd.open(tmp_path / "few")).save(tmp_path / "decoded")
    ours = load(tmp_path / "decoded")
    assert_same(ours.state_dict(), theirs.state_dict())
    tokens = torch.arange(20).reshape(2, 10) + 3
    with torch.no_grad():
        logits = ours(tokens).logits
        assert torch.equal(logits, theirs(tokens).logits)
        assert not torch.equal(logits, model(tokens).logits)
        assert torch.allclose(logits, model(tokens).logits, atol=0.2)
