"""Quantised experts in other layouts: converted then decoded is decoded then converted, and back is what it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_experts import EXPERT, SCHEMES, experts
from safetensors.torch import save_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.quantization import dequantize, quantize

AT = "model.layers.0.mlp.experts."


def checkpoint(name: str, **sizes: int) -> lazysd.Checkpoint:
    tensors, config = experts(name, **sizes)
    return lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, config=config)


def folder(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def bits(node: Any) -> torch.Tensor:
    return node.reshape(-1).materialize().view(torch.uint8)


def with_equal_numbers(source: lazysd.Checkpoint) -> lazysd.Checkpoint:
    """The same where gate, up and down have one number."""
    numbers = {key: torch.full(node.dims, 0.3).to(node.dtype) for key, node in source.items() if node.numel() == 1}
    return source.like({key: lazysd.from_torch(numbers[key]) if key in numbers else source[key] for key in source})


def assert_same(ours: lazysd.Checkpoint, theirs: lazysd.Checkpoint) -> None:
    assert sorted(ours) == sorted(theirs)
    for key, node in theirs.items():
        assert (ours[key].code, ours[key].dims) == (node.code, node.dims), key
        assert torch.equal(bits(ours[key]), bits(node)), key


def assert_travels(source: lazysd.Checkpoint, to: str, through: str = "hf", joined: str = "") -> None:
    """Still quantised there, the same values, and the same bytes after the way back.

    `joined`: matches the keys of numbers that are one with another there.
    """
    lost = sum(node.nbytes for key, node in source.items() if joined and re.search(joined, key) and node.numel() == 1)
    made = source.convert(to) if through == "hf" else source.convert(through).convert(to)
    assert made.config == source.config
    assert sum(node.nbytes for node in made.values()) == source.nbytes - lost
    assert_same(dequantize(made), dequantize(source).convert(to))
    assert_same(made.convert("hf"), source)


@pytest.mark.parametrize("to", ["hf", "hf-fused", "vllm", "nemo", "torchtitan"])
@pytest.mark.parametrize("name", SCHEMES)
def test_there_and_back(name: str, to: str) -> None:
    source = checkpoint(name, E=11 if to == "vllm" else 2)
    if to == "nemo" and SCHEMES[name][2] is None:
        source = with_equal_numbers(source)
        assert_travels(source, to, joined=r"up_proj\.weight_scale")
        return
    elif to == "nemo" and not SCHEMES[name][2]:
        with pytest.raises(LayoutError, match=r"would have to be transposed for layout 'nemo'.*: --dtype bf16"):
            source.convert(to)
        assert dequantize(source).convert("nemo").keys() >= {AT + "down_projs"}  # what the message advises
        return
    assert_travels(source, to)


@pytest.mark.parametrize("name", [name for name, (_, _, turns) in SCHEMES.items() if turns])
@pytest.mark.parametrize("through", ["nemo", "vllm", "hf-fused"])
@pytest.mark.parametrize("to", ["nemo", "vllm", "hf-fused"])
def test_every_pair_of_layouts(name: str, through: str, to: str) -> None:
    assert_travels(checkpoint(name, E=3), to, through)


@pytest.mark.parametrize("to", ["hf", "hf-fused", "vllm", "nemo"])
@pytest.mark.parametrize("name", ["fp8 square", "8-bit modelopt", "nvfp4 modelopt", "int4"])
def test_on_disk_by_the_command_line(name: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, config = experts(name, E=3, layers=2)
    source, there, back = folder(tmp_path / "a", tensors, config), tmp_path / "there", tmp_path / "back"
    args = ["convert", str(source), str(there), "--to", to, "--verify"]
    if to == "nemo" and not SCHEMES[name][2]:
        assert main(args) == 3
        error = capsys.readouterr().err
        assert "--dtype bf16" in error
        assert "gate_and_up_projs_weight_scale differ" in error or "be transposed" in error
        assert main([*args, "--dtype", "bf16"]) == 0
        assert "quantization_config" not in json.loads((there / "config.json").read_text())
        return
    assert main(args) == 0
    assert json.loads((there / "config.json").read_text()) == config
    with lazysd.open(there) as made:
        assert (made.layout, made.family) == (to, "qwen3_moe")
        assert_same(dequantize(made), dequantize(lazysd.open(source)).convert(to))
    assert main(["verify", str(there)]) == 0
    assert main(["verify", str(there), "--against", str(source)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert main(["convert", str(there), str(back), "--to", "hf"]) == 0
    assert_same(lazysd.open(back), lazysd.open(source))
    assert main(["diff", str(back), str(source)]) == 0


def test_names_of_what_travels() -> None:
    made = checkpoint("nvfp4 modelopt").convert("vllm")
    assert made[AT + "w13_weight"].dims == (11, 64, 32)
    assert made[AT + "w13_weight_scale"].dims == (11, 64, 4)
    assert made[AT + "w13_weight_scale_2"].dims == made[AT + "w13_input_scale"].dims == (11, 2)
    assert made[AT + "w2_weight_scale_2"].dims == (11,)
    assert made["model.layers.0.self_attn.q_proj.weight_scale"].dims == (64, 4)
    names = {
        "fp8 static": {"w13_weight", "w13_weight_scale_inv", "w13_activation_scale"},
        "nvfp4 compressed": {"w13_weight_packed", "w13_weight_scale", "w13_weight_global_scale"},
        "int4": {"w13_weight_packed", "w13_weight_scale", "w13_weight_shape"},
    }
    for name, wanted in names.items():
        assert {AT + end for end in wanted} <= checkpoint(name, E=2).convert("vllm").keys()
    fused = checkpoint("fp8 square", E=2).convert("hf-fused")  # as transformers calls them
    assert {AT + "gate_up_proj", AT + "gate_up_proj_scale_inv", AT + "down_proj_scale_inv"} <= fused.keys()


def test_blocks_that_would_straddle_gate_and_up() -> None:
    source = checkpoint("fp8 e8m0", E=2, I=24)  # 24 rows in blocks of 16: two blocks each, and three for both
    for to in ("hf-fused", "nemo"):
        with pytest.raises(
            LayoutError, match=r"gate_proj\.weight_scale_inv: parts of 24 stand side by side in the 48 .* straddle"
        ):
            source.convert(to)
    assert_travels(source, "hf")
    fused = {AT + "gate_up_proj": torch.zeros(2, 48, 32).to(torch.float8_e4m3fn)}
    fused |= {AT + "gate_up_proj_scale_inv": torch.ones(2, 3, 2), AT + "down_proj": torch.zeros(2, 32, 24)}
    config = {**(source.config or {}), "moe_intermediate_size": 24, "hidden_size": 32}
    nodes = {key: lazysd.from_torch(node) for key, node in fused.items()}
    with pytest.raises(LayoutError, match=r"gate_up_proj_scale_inv: parts of 24 stand side by side .*--dtype bf16"):
        lazysd.Checkpoint(nodes, config=config).convert("hf")


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_sizes_travel_or_are_refused_with_the_reason(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SCHEMES)))
    to = data.draw(st.sampled_from(["hf-fused", "vllm", "nemo"]))
    E, rows, columns = (data.draw(st.integers(1, most)) for most in (11, 3, 3))
    ragged = name.startswith("fp8") and data.draw(st.booleans())
    source = checkpoint(
        name, E=E, I=rows * 32 - (ragged and data.draw(st.integers(0, 31))), H=columns * 32 - 3 * ragged
    )
    if SCHEMES[name][2] is None and to == "nemo":
        source = with_equal_numbers(source)
    block = (source.config or {})["quantization_config"].get("weight_block_size", [1])[0]
    if to == "nemo" and SCHEMES[name][2] is False:
        reason = "would have to be transposed"
    elif name.startswith("fp8") and source[EXPERT.format(0, 0, "up") + ".weight"].dims[0] % block:
        reason = "would straddle them"
    else:
        made = source.convert(to)
        assert_same(dequantize(made), dequantize(source).convert(to))
        assert_same(made.convert("hf"), source)
        return
    with pytest.raises(LayoutError, match=f"{reason}.*: --dtype bf16"):
        source.convert(to)
    made = dequantize(source).convert(to)  # what the message advises
    assert_same(made.convert("hf"), dequantize(source))


def test_experts_that_are_quantised_in_part() -> None:
    source = dict(checkpoint("fp8 square", E=3))
    down = EXPERT.format(0, 1, "down") + ".weight"
    plain = {**source, down: lazysd.from_torch(torch.zeros(64, 32).bfloat16())}
    lacking = {key: node for key, node in source.items() if key != down + "_scale_inv"}
    config = checkpoint("fp8 square", E=3).config
    del plain[down + "_scale_inv"]
    with pytest.raises(
        LayoutError, match=r"1\.down_proj\.weight is plain \(BF16\), \S*0\.down_proj\.weight is fp8-blocks with .*bf16"
    ):
        lazysd.Checkpoint(plain, config=config).convert("vllm")
    with pytest.raises(
        LayoutError, match=r"1\.down_proj\.weight means nothing without \S*_scale_inv, missing here.*is a shard missing"
    ):
        lazysd.Checkpoint(lacking, config=config).convert("vllm")
    alone = {key: node for key, node in source.items() if key != down}
    with pytest.raises(LayoutError, match=r"1\.down_proj\.weight_scale_inv: scales whose weight is missing"):
        lazysd.Checkpoint(alone, config=config).convert("vllm")


def test_layers_of_several_kinds() -> None:
    """A layer of plain experts, one in FP8, one in NVFP4: each stays what it is."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, name in enumerate(("fp8 square", "nvfp4 compressed", "8-bit a row")):
        made = experts(name, E=2, layers=3)[0]
        tensors |= {key: tensor for key, tensor in made.items() if f"layers.{layer}." in key}
    plain = {EXPERT.format(3, e, g) + ".weight": torch.randn(32, 64) for e in range(2) for g in ("gate", "up")}
    plain |= {EXPERT.format(3, e, "down") + ".weight": torch.randn(64, 32) for e in range(2)}
    config = {**experts("fp8 square", E=2)[1], "quantization_config": {"weight_block_size": [32, 32]}}
    tensors |= plain
    tensors = {key: tensor[0:1] if key.endswith("x") else tensor for key, tensor in tensors.items()}
    source = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, config=config)
    for to in ("vllm", "hf-fused"):
        made = source.convert(to)
        assert made["model.layers.3.mlp.experts." + ("w13_weight" if to == "vllm" else "gate_up_proj")].code == "F32"
        back = made.convert("hf")
        numbers = [key for key in source if key.endswith("2.mlp.experts.0.up_proj.input_scale")]
        assert [(source[key].dims, back[key].dims) for key in numbers] == [((1,), ())]  # as ModelOpt writes them
        assert_same(back.drop("*.input_scale"), source.drop("*.input_scale"))
        assert all(torch.equal(bits(back[key]), bits(node)) for key, node in source.items())


def test_companions_that_some_experts_lack() -> None:
    source = checkpoint("nvfp4 modelopt", E=3).drop(EXPERT.format(0, 2, "up") + ".input_scale")
    with pytest.raises(LayoutError, match=r"quantised in several ways: .*global_scale \(number\), input_scale"):
        source.convert("vllm")


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_what_cannot_be_cut_is_refused_by_name(method: str) -> None:
    from quantised_experts import gptq

    tensors = {}
    for e in range(2):
        for g in ("gate", "up", "down"):
            parts = gptq(64, 64)
            if method == "bitsandbytes":
                parts = {"weight": parts["g_idx"].to(torch.uint8).view(64, 1), "weight.absmax": torch.rand(2)}
            tensors |= {f"{EXPERT.format(0, e, g)}.{end}": lazysd.from_torch(part) for end, part in parts.items()}
    config = {"model_type": "qwen3_moe", "num_experts": 2, "hidden_size": 64, "moe_intermediate_size": 64}
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    source = lazysd.Checkpoint(tensors, config=config)
    with pytest.raises(LayoutError, match=r"gptq stores a weight so that it cannot be split|does not decode bitsandb"):
        source.convert("vllm")
    assert_same(source.convert("hf") if method == "gptq" else source, source)


def gpt_oss(E: int = 12, I: int = 32, H: int = 64) -> tuple[dict[str, torch.Tensor], lazysd.Checkpoint]:  # noqa: E741
    tensors = {
        AT + "gate_up_proj_blocks": torch.randint(0, 256, (E, 2 * I, H // 32, 16), dtype=torch.uint8),
        AT + "gate_up_proj_scales": torch.randint(0, 255, (E, 2 * I, H // 32), dtype=torch.uint8),
        AT + "gate_up_proj_bias": torch.randn(E, 2 * I).bfloat16(),
        AT + "down_proj_blocks": torch.randint(0, 256, (E, H, I // 32, 16), dtype=torch.uint8),
        AT + "down_proj_scales": torch.randint(0, 255, (E, H, I // 32), dtype=torch.uint8),
        AT + "down_proj_bias": torch.randn(E, H).bfloat16(),
        "model.layers.0.mlp.router.weight": torch.randn(E, H).bfloat16(),
        "model.layers.0.self_attn.sinks": torch.randn(4).bfloat16(),
    }
    config = {"model_type": "gpt_oss", "num_local_experts": E, "hidden_size": H, "intermediate_size": I}
    config["quantization_config"] = {"quant_method": "mxfp4"}
    return tensors, lazysd.Checkpoint({key: lazysd.from_torch(node) for key, node in tensors.items()}, config=config)


@pytest.mark.parametrize("sizes", [{}, {"I": 32, "H": 32}, {"I": 32, "H": 64, "E": 1}])
def test_gpt_oss_keeps_its_blocks(sizes: dict[str, int]) -> None:
    source = gpt_oss(**sizes)[1]
    assert (source.layout, source.family) == ("hf", "gpt_oss")
    layouts = ("hf-fused", "nemo", "vllm", "torchtitan")
    for to in layouts:
        assert_travels(source, to)
        for through in layouts:
            assert_same(source.convert(through).convert(to), source.convert(to))
    assert AT + "gate_and_up_projs_blocks" in source.convert("nemo")


def test_gpt_oss_as_vllm_and_torchtitan_keep_it() -> None:
    """Whole rows move, codes and scales alike: both programs take the stored rows in their order."""
    tensors, source = gpt_oss()
    made = source.convert("vllm")
    for name, ours in (("gate_up_proj", "w13"), ("down_proj", "w2")):
        blocks, scales = tensors[AT + name + "_blocks"], tensors[AT + name + "_scales"]
        assert torch.equal(made[AT + ours + "_weight"].materialize(), blocks.flatten(-2))
        assert torch.equal(made[AT + ours + "_weight_scale"].materialize(), scales)
        assert torch.equal(made[AT + ours + "_bias"].materialize(), tensors[AT + name + "_bias"])
    plain = dequantize(source)
    for name, ours in (("gate_up_proj", "w13_weight"), ("down_proj", "w2_weight")):
        wanted = plain[AT + name].materialize().transpose(1, 2)
        assert torch.equal(plain.convert("vllm")[AT + ours].materialize(), wanted)
    made, at = source.convert("torchtitan"), "layers.0.moe.routed_experts.inner_experts."
    for name, ours in (("gate_up_proj", "mlp1_weight"), ("down_proj", "mlp2_weight")):
        assert torch.equal(made[at + ours + ".blocks"].materialize(), tensors[AT + name + "_blocks"])
        assert torch.equal(made[at + ours + ".scales"].materialize(), tensors[AT + name + "_scales"])


def test_kimi_k2_int4() -> None:
    source = checkpoint("int4", E=10)
    tensors = {f"language_model.{key}": node for key, node in source.items() if ".mlp.experts." in key}
    tensors["language_model.model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] = lazysd.from_torch(torch.ones(2, 64))
    said = source.config or {}
    config = {"model_type": "kimi_k25", "text_config": {**said, "model_type": "kimi_k2"}}
    config["text_config"]["n_routed_experts"] = config["text_config"].pop("num_experts")
    made = lazysd.Checkpoint(tensors, config=config)
    assert made.layout == "hf"
    assert_travels(made, "vllm")
    with pytest.raises(LayoutError, match="transposed for layout 'nemo'"):
        made.convert("nemo")


def test_deepseek_with_ragged_attention() -> None:
    tensors, config = experts("fp8 e8m0", E=10, I=48, H=96)
    config |= {"model_type": "deepseek_v3"}
    config["n_routed_experts"] = config.pop("num_experts")
    make = SCHEMES["fp8 e8m0"][0]
    for name, (rows, columns) in {"kv_a_proj_with_mqa": (37, 96), "o_proj": (96, 50)}.items():
        tensors |= {f"model.layers.0.self_attn.{name}.{end}": part for end, part in make(rows, columns).items()}
    source = lazysd.Checkpoint({key: lazysd.from_torch(node) for key, node in tensors.items()}, config=config)
    for to in ("nemo", "hf-fused", "vllm", "torchtitan"):
        assert_travels(source, to)


def test_dense_projections_in_fp8() -> None:
    make = SCHEMES["fp8 e8m0"][0]
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64)}
    shapes |= {"mlp.gate_proj": (80, 64), "mlp.up_proj": (80, 64), "mlp.down_proj": (64, 80)}
    tensors = {
        f"model.layers.{layer}.{name}.{end}": lazysd.from_torch(part)
        for layer in range(2)
        for name, dims in shapes.items()
        for end, part in make(*dims).items()
    }
    config = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "head_dim": 16, "quantization_config": SCHEMES["fp8 e8m0"][1]}
    assert_travels(lazysd.Checkpoint(tensors, config=config), "vllm")
    config |= {"head_dim": 12}
    shapes |= {"self_attn.q_proj": (48, 64), "self_attn.k_proj": (24, 64), "self_attn.v_proj": (24, 64)}
    tensors = {
        f"model.layers.0.{name}.{end}": lazysd.from_torch(part)
        for name, dims in shapes.items()
        for end, part in make(*dims).items()
    }
    with pytest.raises(LayoutError, match=r"parts of 24 stand side by side .* blocks of 16 would straddle"):
        lazysd.Checkpoint(tensors, config=config).convert("vllm")


def test_what_is_encoded_travels() -> None:
    torch.manual_seed(0)
    tensors = {EXPERT.format(0, e, g) + ".weight": torch.randn(64, 128) for e in range(10) for g in ("gate", "up")}
    tensors |= {EXPERT.format(0, e, "down") + ".weight": torch.randn(128, 64) for e in range(10)}
    config = {"model_type": "qwen3_moe", "num_experts": 10, "hidden_size": 128, "moe_intermediate_size": 64}
    plain = lazysd.Checkpoint({key: lazysd.from_torch(node) for key, node in tensors.items()}, config=config)
    for scheme in ("fp8-blocks", "mxfp4-compressed", "nvfp4-modelopt", "nvfp4-compressed"):
        said = {"weight_block_size": [32, 64]} if scheme == "fp8-blocks" else {}
        assert_travels(quantize(plain, scheme, **said), "vllm")


def parts_of(name: str, modules: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Quantised weights of these shapes, lazily."""
    make = SCHEMES[name][0]
    return {
        f"{module}.{end}": lazysd.from_torch(part)
        for module, dims in modules.items()
        for end, part in make(*dims).items()
    }


@pytest.mark.parametrize("rows", [16, 26])  # 26 is one block and ten rows: two blocks each, and four of both
def test_what_stands_beside_experts_is_checked_like_experts(rows: int) -> None:
    at = "language_model.model.layers.{}."
    modules = {at.format(0) + f"mlp.{g}_proj": (rows, 64) for g in ("gate", "up")}
    modules |= {at.format(0) + "mlp.down_proj": (64, rows)}
    for e in range(2):
        modules |= {at.format(1) + f"block_sparse_moe.experts.{e}.{w}": (32, 64) for w in ("w1", "w3")}
        modules |= {at.format(1) + f"block_sparse_moe.experts.{e}.w2": (64, 32)}
    inner = {"num_local_experts": 2, "hidden_size": 64, "intermediate_size": 32}
    config = {"model_type": "minimax_m3_vl", "text_config": inner, "quantization_config": SCHEMES["fp8 e8m0"][1]}
    source = lazysd.Checkpoint(parts_of("fp8 e8m0", modules), config=config)
    if rows % 16:
        with pytest.raises(LayoutError, match=r"0\.mlp\.gate_proj\.weight_scale_inv: parts of 26 .* would straddle"):
            source.convert("hf-fused")
    else:
        assert_travels(source, "hf-fused")


@pytest.mark.parametrize("name", ["fp8 e8m0", "8-bit a row", "mxfp4"])
def test_interleaved_rows_of_what_stands_beside_experts(name: str) -> None:
    """Rows with scales of their own are taken apart with them; rows that share a block are not."""
    tensors = parts_of(name, {"model.llm.layers.0.mlp.w13_dn": (64, 64)})
    config = {"model_type": "inkling", "quantization_config": SCHEMES[name][1]}
    source = lazysd.Checkpoint(tensors, config=config, layout="hf", family="inkling")
    if name.startswith("fp8"):
        with pytest.raises(LayoutError, match=r"w13_dn\.weight_scale_inv: layout 'hf-fused' interleaves a and g"):
            source.convert("hf-fused")
        return
    source = source.drop("*.input_scale")
    assert_travels(source, "hf-fused")


@pytest.mark.parametrize("rows", [32, 26])
def test_dense_layers_and_shared_experts_in_megatron(rows: int) -> None:
    source = dict(checkpoint("fp8 e8m0", E=2, I=32, H=64))
    source = {key.replace("layers.0", "layers.1"): node for key, node in source.items() if "self_attn" not in key}
    modules = {f"model.layers.0.mlp.{g}_proj": (rows, 64) for g in ("gate", "up")}
    modules |= {f"model.layers.1.mlp.shared_experts.{g}_proj": (32, 64) for g in ("gate", "up")}
    modules |= {"model.layers.0.mlp.down_proj": (64, rows), "model.layers.1.mlp.shared_experts.down_proj": (64, 32)}
    source |= parts_of("fp8 e8m0", modules)
    source |= {f"model.layers.{n}.post_attention_layernorm.weight": lazysd.from_torch(torch.ones(64)) for n in (0, 1)}
    config = {"model_type": "deepseek_v3", "n_routed_experts": 2, "hidden_size": 64, "moe_intermediate_size": 32}
    made = lazysd.Checkpoint(source, config={**config, "quantization_config": SCHEMES["fp8 e8m0"][1]})
    if rows % 16:
        with pytest.raises(LayoutError, match=r"0\.mlp\.gate_proj\.weight_scale_inv: parts of 26 .* would straddle"):
            made.convert("megatron")
    else:
        assert_travels(made, "megatron")


def test_how_weights_are_quantised_may_be_stated() -> None:
    for name, sizes in (("int4", {}), ("fp8 e8m0", {"I": 48})):
        tensors, config = experts(name, E=2, **sizes)
        wanted = lazysd.Checkpoint({k: lazysd.from_torch(t) for k, t in tensors.items()}, config=config).convert("vllm")
        lazy = {key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}
        made = lazysd.convert(lazy, to="vllm", config=config)
        assert isinstance(made, lazysd.Checkpoint)
        assert_same(made, wanted)
        assert made.config == config


def test_scales_of_another_type_are_named() -> None:
    source = dict(checkpoint("nvfp4 compressed", E=2))
    key = EXPERT.format(0, 1, "up") + ".weight_scale"
    source[key] = lazysd.from_torch(torch.zeros(32, 4, dtype=torch.int8))
    config = checkpoint("nvfp4 compressed", E=2).config
    with pytest.raises(
        LayoutError, match=r"1\.up_proj\.weight_packed is U8\[32, 32\], but \S*weight_scale is I8\[32, 4\]"
    ):
        lazysd.Checkpoint(source, config=config).convert("vllm")


@pytest.mark.parametrize("name", ["int4", "mxfp4", "int8 a row", "fp8 square"])
def test_codes_are_not_cast(name: str) -> None:
    from lazysd.casting import cast_checkpoint

    with pytest.raises(LayoutError, match=r"cannot cast \S*gate_proj\.weight.* decode first"):
        cast_checkpoint(checkpoint(name, E=2), "f16")


def test_gpt_oss_in_vllm_becomes_nvfp4_with_every_value_the_same() -> None:
    tensors, source = gpt_oss(E=2)
    narrow = {key: (100 + node % 16).to(torch.uint8) if "scales" in key else node for key, node in tensors.items()}
    made = lazysd.Checkpoint({key: lazysd.from_torch(node) for key, node in narrow.items()}, config=source.config)
    there = made.convert("vllm")
    few = quantize(there, "nvfp4-modelopt")
    assert few[AT + "w13_weight"].op == there[AT + "w13_weight"].op
    assert few[AT + "w13_weight_scale"].code == "F8_E4M3"
    assert_same(dequantize(few, "f32"), dequantize(there, "f32"))


def test_shapes_of_packed_codes_in_megatron() -> None:
    tensors, config = experts("int4", E=2, model_type="mixtral")
    words = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for word, ours in words.items():
        tensors = {
            key.replace("mlp.experts", "block_sparse_moe.experts").replace(word, ours): t for key, t in tensors.items()
        }
    tensors = {key: lazysd.from_torch(t) for key, t in tensors.items() if ".experts." in key}
    config = {**config, "num_local_experts": 2, "intermediate_size": 32}
    assert_travels(lazysd.Checkpoint(tensors, config=config), "megatron")
