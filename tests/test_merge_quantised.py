"""LoRA into quantised bases: decoded and added, or encoded again; what nothing touches keeps its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkpoints import bits, write
from lora_adapters import read_json, write_adapter
from quantised_experts import EXPERT, SCHEMES, experts
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.merging import merge
from lazysd.quantization import dequantize, quantize

SAID = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_version": "0.21.2"}
GATE = EXPERT.format(0, 1, "gate")
ENCODED = [
    ("fp8-blocks", {"weight_block_size": [16, 32]}),
    ("fp8-blocks", {"weight_block_size": [16, 16], "scale_fmt": "ue8m0"}),
    ("mxfp4-compressed", {}),
    ("nvfp4-modelopt", {}),
    ("nvfp4-compressed", {}),
]


def plain(E: int = 3, I: int = 32, H: int = 64) -> dict[str, torch.Tensor]:  # noqa: E741
    torch.manual_seed(0)
    made = {EXPERT.format(0, e, g) + ".weight": torch.randn(I, H) for e in range(E) for g in ("gate", "up")}
    made |= {EXPERT.format(0, e, "down") + ".weight": torch.randn(H, I) for e in range(E)}
    return made | {f"model.layers.0.self_attn.{p}_proj.weight": torch.randn(64, H) for p in "qo"}


CONFIG = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 64, "moe_intermediate_size": 32}


def quantised(path: Path, scheme: str, said: dict[str, Any], to: str = "hf") -> lazysd.Checkpoint:
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in plain().items()}, config=CONFIG)
    quantize(source, scheme, **said).convert(to).save(path)
    return lazysd.open(path)


def adapter(path: Path) -> lazysd.Checkpoint:
    """One expert's gate (the others are there, and add nothing), and the attention's q."""
    torch.manual_seed(1)
    lora = {}
    modules = {EXPERT.format(0, e, g): (32, 64) for e in range(3) for g in ("gate", "up")}
    modules |= {EXPERT.format(0, e, "down"): (64, 32) for e in range(3)}
    for module, (rows, columns) in {**modules, "model.layers.0.self_attn.q_proj": (64, 64)}.items():
        some = module == GATE or "q_proj" in module
        lora[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, columns)
        lora[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2) * some
    write_adapter(path, lora, SAID)
    return lazysd.open(path)


def added(base: torch.Tensor, lora: lazysd.Checkpoint, module: str) -> torch.Tensor:
    a, b = (lora[f"base_model.model.{module}.lora_{f}.weight"].materialize().double() for f in "AB")
    return base.double() + 2 * b @ a


@pytest.mark.filterwarnings("ignore")
def test_decoded_is_what_peft_merges(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(tmp_path / "plain")
    quantize(lazysd.open(tmp_path / "plain"), "fp8-blocks", weight_block_size=[16, 32]).save(tmp_path / "few")
    dequantize(lazysd.open(tmp_path / "few")).save(tmp_path / "decoded")
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "decoded", dtype=torch.bfloat16)
    said = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, said)
    wrapped.save_pretrained(tmp_path / "a")
    theirs = wrapped.merge_and_unload().state_dict()
    args = ["merge", str(tmp_path / "few"), str(tmp_path / "a"), str(tmp_path / "out"), "--dtype", "bf16", "--verify"]
    assert main(args) == 0
    assert "quantization_config" not in read_json(tmp_path / "out/config.json")
    ours = lazysd.open(tmp_path / "out")
    assert {node.code for node in ours.values()} == {"BF16"}
    before = lazysd.open(tmp_path / "decoded")
    moved = 0
    for key, node in ours.items():
        assert torch.equal(bits(node.materialize()), bits(theirs[key])), key
        moved += not torch.equal(bits(node.materialize()), bits(before[key].materialize()))
    assert moved == 4


@pytest.mark.parametrize("to", ["hf", "hf-fused", "vllm"])
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_decoded_and_added_to(name: str, to: str, tmp_path: Path) -> None:
    tensors, config = experts(name, E=3)
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, config=config)
    other = adapter(tmp_path / "a")
    wanted = merge(dequantize(source), other)
    made = merge(source.convert(to), other, dtype="bf16").convert("hf")
    for key, node in wanted.items():
        assert torch.equal(bits(made[key].materialize()), bits(node.materialize())), key
    with pytest.raises(LayoutError, match=r"the base is quantised .*--dtype bf16.*--requantize"):
        merge(source.convert(to), other)


@pytest.mark.parametrize("to", ["hf", "hf-fused"])
@pytest.mark.parametrize(("scheme", "said"), ENCODED)
def test_what_changes_is_encoded_again(
    scheme: str, said: dict[str, Any], to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = quantised(tmp_path / "base", scheme, said, to), adapter(tmp_path / "a")
    args = ["merge", str(tmp_path / "base"), str(tmp_path / "a"), str(tmp_path / "out"), "--requantize", "--verify"]
    assert main(args) == 0
    error = capsys.readouterr().err
    assert "quantise" in error
    assert "LoRA merged, and 10 weights encoded again" in str(read_json(tmp_path / "out/config.json"))
    assert any("quantise" in text for text in read_json(tmp_path / "out/lazysd.manifest.json")["lossy"])
    made = lazysd.open(tmp_path / "out")
    assert sorted(made) == sorted(base)
    assert made.config["quantization_config"] == base.config["quantization_config"]  # type: ignore[index]
    changed = {key for key in base if not torch.equal(bits(made[key].materialize()), bits(base[key].materialize()))}
    assert changed
    assert not any("o_proj" in key for key in changed)  # which the adapter says nothing of
    after, before = (dequantize(one, "f32").convert("hf") for one in (made, base))
    for module in (GATE, "model.layers.0.self_attn.q_proj"):
        exact = added(before[module + ".weight"].materialize(), lora, module)
        error_of = (after[module + ".weight"].materialize().double() - exact).abs().max()
        assert error_of <= exact.abs().max() * (0.08 if "fp8" in scheme else 0.3)
        assert error_of < 0.5 * (before[module + ".weight"].materialize().double() - exact).abs().max()


@pytest.mark.parametrize("to", ["hf-fused", "vllm", "nemo"])
@pytest.mark.parametrize(("scheme", "said"), ENCODED)
def test_experts_that_an_adapter_does_not_touch_keep_their_codes(
    scheme: str, said: dict[str, Any], to: str, tmp_path: Path
) -> None:
    """A fused group is what its experts, encoded one by one, are when they are put together."""
    lora = adapter(tmp_path / "a")
    few = lora.select(f"*{GATE}.*", f"*{EXPERT.format(0, 2, 'down')}.*")
    with pytest.raises(LayoutError, match=r"5 missing: .*experts\.0\.gate_proj\.lora_A"):
        merge(quantised(tmp_path / "d", scheme, said), few, config={"target_modules": ["gate_proj"]}, dtype="bf16")
    alone = merge(quantised(tmp_path / "b", scheme, said), few, requantize=True)
    if to == "nemo" and (scheme == "mxfp4-compressed" or scheme == "nvfp4-compressed" or said.get("scale_fmt") is None):
        return  # which these do not convert to, or with one number for gate and up
    base = quantised(tmp_path / "c", scheme, said, to)
    made = merge(base, few, requantize=True)
    wanted = alone.convert(to)
    for key, node in wanted.items():
        assert torch.equal(bits(made[key].materialize()), bits(node.materialize())), key
    before = base.convert("hf")
    kept = {
        key
        for key, node in made.convert("hf").items()
        if torch.equal(bits(node.materialize()), bits(before[key].materialize()))
    }
    assert {key for key in before if "experts.0." in key or "up_proj" in key or "1.down" in key} <= kept
    assert not any(key.startswith(GATE + ".weight") and before[key].ndim == 2 for key in kept)
    assert any("and 2 weights encoded again" in text for text in made.remarks)


@pytest.mark.parametrize("scheme", ["nvfp4-modelopt", "nvfp4-compressed"])
def test_a_fused_group_is_encoded_as_its_experts_are(scheme: str, tmp_path: Path) -> None:
    """Global scales stay one for each expert's gate and up, and codes are those of the experts one by one."""
    lora = adapter(tmp_path / "a")
    alone = merge(quantised(tmp_path / "b", scheme, {}), lora, requantize=True)
    made = merge(quantised(tmp_path / "c", scheme, {}, "hf-fused"), lora, requantize=True).convert("hf")
    touched = [key for key in alone if GATE in key]
    assert len(touched) == 3
    for key in touched:
        assert torch.equal(bits(made[key].materialize()), bits(alone[key].materialize())), key


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["fp8-blocks", "mxfp4-compressed", "nvfp4-modelopt"])
def test_experts_are_what_peft_merges_exactly(scheme: str, tmp_path: Path) -> None:
    """PEFT on the decoded model in float64, rounded once. In bf16 it rounds the update of experts before it adds it."""
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=11, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).bfloat16().save_pretrained(tmp_path / "plain")
    settings = {"weight_block_size": [16, 16]} if scheme == "fp8-blocks" else {}
    quantize(lazysd.open(tmp_path / "plain"), scheme, **settings).save(tmp_path / "few")
    lazysd.open(tmp_path / "few").convert("hf-fused").save(tmp_path / "fused")
    dequantize(lazysd.open(tmp_path / "few")).save(tmp_path / "decoded")
    model = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "decoded", dtype=torch.float64)
    said = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, said, autocast_adapter_dtype=False).float()
    wrapped.save_pretrained(tmp_path / "a")
    exact = wrapped.double().merge_and_unload().state_dict()
    before = lazysd.open(tmp_path / "decoded").convert("hf-fused")
    for base in ("few", "fused"):
        made = merge(lazysd.open(tmp_path / base), lazysd.open(tmp_path / "a"), to="hf-fused", dtype="bf16")
        moved = [key for key in made if not torch.equal(made[key].materialize(), before[key].materialize())]
        assert len(moved) == 3
        for key in exact:
            ours, theirs = made[key].materialize(), exact[key].bfloat16()
            ties = int((bits(ours) != bits(theirs)).sum())  # float64 rounded to bf16, and to float32 before
            assert ties <= ours.numel() // 10_000, f"{key}: {ties} of {ours.numel()} differ"


def test_what_is_not_encoded_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, config = experts("int4", E=3)
    base = write(tmp_path / "base", tensors, config=config)
    adapter(tmp_path / "a")
    assert main(["merge", str(base), str(tmp_path / "a"), str(tmp_path / "out"), "--requantize"]) == 3
    assert "does not write int-packed weights" in (error := capsys.readouterr().err)
    assert "--dtype bf16" in error
    assert not (tmp_path / "out").exists()


def test_a_plain_weight_of_a_quantised_base(tmp_path: Path) -> None:
    """Nothing is decoded or encoded where the adapter touches plain weights only."""
    tensors, config = experts("nvfp4 modelopt", E=3)
    router = "model.layers.0.mlp.gate"
    base = lazysd.open(write(tmp_path / "base", tensors, config=config))
    lora = {f"base_model.model.{router}.lora_A.weight": torch.ones(2, 64)}
    lora |= {f"base_model.model.{router}.lora_B.weight": torch.ones(3, 2)}
    write_adapter(tmp_path / "a", lora, SAID)
    for made in (merge(base, lazysd.open(tmp_path / "a")), merge(base, lazysd.open(tmp_path / "a"), to="vllm")):
        back = made.convert("hf")
        for key, node in base.items():
            same = torch.equal(bits(back[key].materialize()), bits(node.materialize()))
            assert same == (key != router + ".weight"), key
        assert made.plan().lossy == ("merge of a LoRA update (1 tensors)",)
