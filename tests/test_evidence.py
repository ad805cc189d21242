"""Evidence decides which table a checkpoint is read by: model_type, sizes, shapes. No look-alike is ever converted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, noise, random_hf, write
from safetensors.torch import load_file
from tiny_moe import NUM_EXPERTS, saved

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.layouts.sizes import config_sizes

EXPERTS = "model.layers.0.mlp.experts."
QWEN = {"model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 4, "moe_intermediate_size": 5}


def lazies(tensors: Mapping[str, torch.Tensor], **facts: Any) -> lazysd.Checkpoint:
    return lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()}, **facts)


def vl_transposed(hidden: int = 8, inner: int = 6, experts: int = 4) -> dict[str, torch.Tensor]:
    return {
        EXPERTS + "gate_up_proj": noise((experts, hidden, 2 * inner), seed=1),
        EXPERTS + "down_proj": noise((experts, inner, hidden), seed=2),
    }


def test_a_transposed_hub_form_is_read_as_such(tmp_path: Path) -> None:
    """Qwen3-VL-MoE as published: (E, H, 2I) under the keys of hf-fused."""
    state = vl_transposed()
    config = {
        "model_type": "qwen3_vl_moe",
        "text_config": {"num_experts": 4, "hidden_size": 8, "moe_intermediate_size": 6},
        "vision_config": {"hidden_size": 1152},
    }
    ckpt = lazysd.open(write(tmp_path / "vl", state, config=config))
    assert (ckpt.family, ckpt.layout) == ("qwen3_vl_moe", "hf-transposed")
    hf = ckpt.convert("hf")
    for e in range(4):
        both = bits(state[EXPERTS + "gate_up_proj"])[e]
        for name, expected in (("gate", both[:, :6].T), ("up", both[:, 6:].T)):
            found = hf[f"{EXPERTS}{e}.{name}_proj.weight"].materialize()
            assert found.shape == (6, 8)
            assert torch.equal(bits(found), expected)
        assert torch.equal(
            bits(hf[f"{EXPERTS}{e}.down_proj.weight"].materialize()), bits(state[EXPERTS + "down_proj"])[e].T
        )
    nemo = ckpt.convert("nemo")
    assert nemo[EXPERTS + "gate_and_up_projs"].materialize().equal(state[EXPERTS + "gate_up_proj"]) or torch.equal(
        bits(nemo[EXPERTS + "gate_and_up_projs"].materialize()), bits(state[EXPERTS + "gate_up_proj"])
    )
    assert all(hf.convert("hf-transposed")[key] is ckpt[key] for key in ckpt)


def test_the_same_keys_the_other_way_round(tmp_path: Path) -> None:
    """Qwen3-VL-MoE as transformers 5.23 saves it: (E, 2I, H)."""
    state = {EXPERTS + "gate_up_proj": noise((4, 12, 8)), EXPERTS + "down_proj": noise((4, 8, 6))}
    config = {
        "model_type": "qwen3_vl_moe",
        "text_config": {"num_experts": 4, "hidden_size": 8, "moe_intermediate_size": 6},
    }
    ckpt = lazysd.open(write(tmp_path / "vl", state, config=config))
    assert ckpt.layout == "hf-fused"
    bare = lazies(state).convert("hf", family="qwen3_vl_moe")  # two shapes of which one has H twice: they decide
    assert bare[EXPERTS + "0.gate_proj.weight"].dims == (6, 8)


def test_where_nothing_tells_them_apart(tmp_path: Path) -> None:
    """2I == H without sizes: refused; with sizes, or with a layout that is stated, read."""
    state = vl_transposed(hidden=8, inner=8)
    square = {EXPERTS + "gate_up_proj": noise((2, 8, 8)), EXPERTS + "down_proj": noise((2, 4, 8))}
    assert lazies(state).convert("hf", family="qwen3_vl_moe")[EXPERTS + "0.up_proj.weight"].dims == (8, 8)
    config = {"model_type": "qwen3_vl_moe", "num_experts": 2}
    cube = {EXPERTS + "gate_up_proj": noise((2, 8, 8))}
    with pytest.raises(LayoutError, match=r"fit several layouts of family 'qwen3_vl_moe' \(hf-fused, hf-transposed\)"):
        lazies(cube, config=config).convert("hf")
    stated = lazies(square, config=config).convert("hf", source="hf-transposed")
    assert stated[EXPERTS + "1.down_proj.weight"].dims == (8, 4)


def test_experts_are_counted_under_any_name(tmp_path: Path) -> None:
    """A missing last expert is seen whatever the config calls their number, wherever it says so."""
    for config in (
        {"n_routed_experts": 4},
        {"moe_num_experts": 4},
        {"num_local_experts": 4},
        {"text_config": {"n_routed_experts": 4}},
        {"llm_config": {"num_experts": 4}},
    ):
        ckpt = lazies(random_hf(experts=3), config={"model_type": "qwen3_moe", **config})
        for to in ("nemo", "hf-fused", "hf"):
            with pytest.raises(MissingExpertsError, match=r"experts\.3\.(gate|up|down)_proj\.weight"):
                ckpt.convert(to)


@pytest.mark.parametrize("to", ["nemo", "hf-fused", "hf"])
@pytest.mark.parametrize(("name", "wrong"), [("hidden_size", 5), ("moe_intermediate_size", 4)])
def test_sizes_check_every_shape(to: str, name: str, wrong: int) -> None:
    ckpt = lazies(random_hf(), config={**QWEN, name: wrong})
    with pytest.raises(LayoutError, match=rf"axis {name[0] if name[0] == 'h' else 'i'} has size \d, expected {wrong}"):
        ckpt.convert(to)


@pytest.mark.parametrize("name", ["num_experts", "hidden_size", "moe_intermediate_size"])
def test_a_size_that_no_file_holds_is_refused_in_few_words(name: str) -> None:
    for number in (2**63, 10**4000, 10**6000):
        with pytest.raises(
            LayoutError, match=rf"config\.json states .* for {name}, more than any file holds"
        ) as refused:
            config_sizes(QWEN | {name: number}, {"e": ("num_experts",), "h": ("hidden_size",), "i": (name,)})
        assert len(str(refused.value)) < 200
    assert config_sizes(QWEN | {"num_experts": 2**63 - 1}, {"e": ("num_experts",)}) == {"e": 2**63 - 1}


def test_a_vision_tower_s_sizes_are_not_the_text_s() -> None:
    config = {"model_type": "qwen3_moe", "text_config": {k: v for k, v in QWEN.items() if k != "model_type"}}
    config["vision_config"] = {"hidden_size": 99, "num_experts": 7}
    assert lazysd.layouts.get("nemo").config_sizes(config) == {"e": 3, "h": 4, "i": 5}
    assert lazies(random_hf(), config=config).convert("nemo")


def test_biases_are_converted(tmp_path: Path) -> None:
    """gpt_oss: interleaved, transposed, with biases. Nothing advises to leave them out."""
    state = {
        EXPERTS + "gate_up_proj": noise((4, 8, 12), seed=1),
        EXPERTS + "gate_up_proj_bias": noise((4, 12), seed=2),
        EXPERTS + "down_proj": noise((4, 6, 8), seed=3),
        EXPERTS + "down_proj_bias": noise((4, 8), seed=4),
        "model.layers.0.mlp.router.weight": noise((4, 8), seed=5),
    }
    config = {"model_type": "gpt_oss", "num_local_experts": 4, "hidden_size": 8, "intermediate_size": 6}
    ckpt = lazysd.open(write(tmp_path / "oss", state, config=config))
    assert ckpt.family == "gpt_oss"
    nemo = ckpt.convert("nemo")
    expected = {
        EXPERTS + "gate_and_up_projs": state[EXPERTS + "gate_up_proj"],
        EXPERTS + "gate_up_proj_bias": state[EXPERTS + "gate_up_proj_bias"],
        EXPERTS + "down_projs": state[EXPERTS + "down_proj"],
        EXPERTS + "down_proj_bias": state[EXPERTS + "down_proj_bias"],
        "model.layers.0.mlp.gate.weight": state["model.layers.0.mlp.router.weight"],
    }
    assert_same(nemo, expected)
    assert_same(nemo.convert("hf"), state)
    vllm = ckpt.convert("vllm")
    w13 = bits(state[EXPERTS + "gate_up_proj"]).transpose(1, 2)  # gate and up stay in turn
    assert torch.equal(bits(vllm[EXPERTS + "w13_weight"].materialize()), w13)
    bias = bits(state[EXPERTS + "gate_up_proj_bias"])
    assert torch.equal(bits(vllm[EXPERTS + "w13_bias"].materialize()), bias)


def test_no_advice_to_leave_out() -> None:
    """An error for a bias or a scale that has no place never says to drop it."""
    said = {
        "bias": "no rule covers it",
        "weight_scale_inv": "has scales, but is BF16",
        "zero_point": "no rule covers it",
    }
    for name, match in said.items():
        key = f"0.gate_proj.{name}"
        with pytest.raises(LayoutError, match=match) as caught:
            lazies(random_hf() | {EXPERTS + key: noise((5,))}).convert("nemo")
        assert "exclude" not in str(caught.value)
        assert "leave out" not in str(caught.value)


def mixtral(experts: int = 4) -> dict[str, torch.Tensor]:
    block = "model.layers.0.block_sparse_moe."
    made = {block + "gate.weight": noise((experts, 8))}
    for e in range(experts):
        for number, (word, dims) in enumerate((("w1", (6, 8)), ("w2", (8, 6)), ("w3", (6, 8)))):
            made[f"{block}experts.{e}.{word}.weight"] = noise(dims, seed=3 * e + number)
    return made


MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "hidden_size": 8, "intermediate_size": 6}


def test_mixtral_is_read_by_its_own_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = mixtral()
    folder = write(tmp_path / "mixtral", state, config=MIXTRAL)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--from", "hf", "--to", "nemo", "--verify"]) == 3
    assert "mixtral" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    fused = lazysd.open(folder).convert("hf-fused")
    head = "model.layers.0.block_sparse_moe.experts."
    gate, up = (torch.stack([bits(state[f"{head}{e}.{w}.weight"]) for e in range(4)]) for w in ("w1", "w3"))
    assert torch.equal(bits(fused[EXPERTS + "gate_up_proj"].materialize()), torch.cat([gate, up], dim=1))
    assert torch.equal(
        bits(fused["model.layers.0.mlp.gate.weight"].materialize()),
        bits(state["model.layers.0.block_sparse_moe.gate.weight"]),
    )
    assert not any("block_sparse_moe" in key for key in fused)
    assert_same(fused.convert("hf"), state)


@pytest.mark.parametrize("source", [None, "hf"])
def test_an_unknown_family_converts_nothing(tmp_path: Path, source: str | None) -> None:
    config = {"model_type": "qwen3_mou", "num_experts": 3, "quantization_config": {"quant_method": "awq"}}
    ckpt = lazysd.open(write(tmp_path / "m", random_hf(), config=config))
    assert ckpt.layout is None
    assert ckpt.family is None
    with pytest.raises(LayoutError, match=r"'qwen3_mou'.*no known family \(quant_method 'awq'\); nearest: qwen3_moe"):
        ckpt.convert("nemo", source=source)
    assert ckpt.convert("nemo", source=source, family="qwen3_moe").layout == "nemo"  # stated: on the user's word


def test_without_a_config_families_that_agree_do() -> None:
    """A bare file converts where every family that fits gives the same; otherwise the families are named."""
    assert lazies(random_hf()).convert("nemo").family == "qwen3_moe"
    fused = by_hand(random_hf(), 3)["hf-fused"] | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)}
    with pytest.raises(LayoutError, match=r"fit several families, whose 'hf' differ: .*qwen3_moe.*mixtral.*family="):
        lazies(fused).convert("hf")
    assert lazies(fused).convert("hf", family="qwen3_moe").layout == "hf"


def test_family_alone_is_honoured() -> None:
    fused = by_hand(random_hf(), 3)["hf-fused"]
    found = lazies(fused).convert("hf", family="mixtral")
    assert found.family == "mixtral"
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in found
    with pytest.raises(LayoutError, match=r"no family 'qwen3moe'; nearest families: qwen3_moe"):
        lazies(fused).convert("hf", family="qwen3moe")


def test_what_is_stated_joins_config_json() -> None:
    """Stating one thing leaves the others of config.json, and with them the check for completeness."""
    ckpt = lazies(random_hf(experts=3), config={**QWEN, "num_experts": 4})
    with pytest.raises(MissingExpertsError, match="needs 8 tensors"):
        ckpt.convert("nemo", config={"lora_alpha": 8})
    found = lazies(random_hf(experts=3), config={**QWEN, "num_experts": 4}).convert(
        "nemo", config={"num_local_experts": 3}
    )
    assert found[EXPERTS + "down_projs"].dims == (3, 5, 4)


def test_a_stated_source_of_which_no_key_is() -> None:
    with pytest.raises(LayoutError, match=r"no key .* layout 'nemo'"):
        lazies(random_hf()).convert("hf", source="nemo")


def test_the_command_line_says_no_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "deepseek_v9", "n_routed_experts": 4}
    folder = write(tmp_path / "m", random_hf(), config=config)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "nemo"]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "deepseek_v9" in err
    assert not (tmp_path / "out").exists()


def test_numbers_are_ascii_and_places_single(tmp_path: Path) -> None:
    """experts.1１ is not expert 11; layers.00 is no layer, but of the kind, so it does not pass."""
    hf = random_hf(experts=12)
    for odd in ("model.layers.0.mlp.experts.1１.up_proj.weight", "model.layers.00.mlp.experts.0.up_proj.weight"):
        with pytest.raises(LayoutError, match="no rule covers it"):
            lazies(hf | {odd: noise((5, 4))}).convert("nemo")


@pytest.mark.parametrize(
    "key",
    ["model.layers.0.mlp.experts.99999999.up_proj.weight", f"model.layers.0.mlp.experts.{'9' * 5000}.up_proj.weight"],
)
def test_a_claim_costs_nothing(key: str) -> None:
    with pytest.raises(LayoutError) as caught:
        lazies(random_hf() | {key: noise((5, 4))}).convert("nemo")
    assert len(str(caught.value)) < 2000
    with pytest.raises(MissingExpertsError, match="needs 2000000000 tensors"):
        lazies(random_hf()).convert("nemo", config={"num_experts": 10**9})
    with pytest.raises(LayoutError, match="expected 1000000000"):
        lazies(random_hf()).convert("nemo").convert("hf", config={"num_experts": 10**9})


def test_the_case_folders(tmp_path: Path) -> None:
    """json and files as people have them: what is refused leaves nothing behind."""
    state = random_hf(experts=3)
    folder = write(tmp_path / "few", state, config={"model_type": "qwen3_moe", "n_routed_experts": 4})
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "nemo"]) == 3
    assert not (tmp_path / "out").exists()
    assert json.loads((folder / "config.json").read_text())["n_routed_experts"] == 4
    assert set(load_file(folder / "model.safetensors")) == set(state)


def test_inspect_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config, expected in (
        (
            QWEN,
            "model_type 'qwen3_moe' of config.json; config.json states 3 experts, hidden size 4, intermediate size 5",
        ),
        ({"model_type": "qwen3_mou"}, "model_type 'qwen3_mou' of config.json is of no known family"),
        (None, "no model_type, so all families were tried; the keys fit qwen3_moe"),
        ({"model_type": "llama"}, "no key belongs to a layout of a known family"),
    ):
        folder = write(tmp_path / f"m{len(expected)}", random_hf(), config=config)
        assert main(["inspect", str(folder)]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("because")]
        assert expected in line


def test_where_a_second_kind_of_experts_starts_has_to_be_known() -> None:
    """ERNIE 4.5 VL: text and vision experts in one list. Without their number nothing is guessed, nor left out."""
    fused = {
        f"model.language_model.layers.0.mlp.{kind}_moe.experts.{name}": noise(dims)
        for kind in ("text", "vision")
        for name, dims in (("gate_up_proj", (3, 10, 4)), ("down_proj", (3, 4, 5)))
    }
    with pytest.raises(LayoutError, match=r"where the second kind starts is not known; state .*moe_num_experts"):
        lazies(fused).convert("hf", source="hf-fused", family="ernie4_5_vl_moe")


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_stacked_experts_alone_are_of_any_family(model_type: str) -> None:
    """Mixtral's and Qwen3-MoE's are the same keys in memory and other ones on disk: stated, or refused by name."""
    pytest.importorskip("transformers")
    model = saved(model_type)
    bare = {key: tensor for key, tensor in model.fused.items() if ".experts." in key}
    disk = {key: tensor for key, tensor in model.disk.items() if ".experts." in key}
    for stated in ({"config": model.config}, {"family": model_type}, {"family": model_type, "source": "hf-fused"}):
        assert_same(lazysd.convert(bare, to="hf", **stated), disk)
    for more in ({}, {"config": {key: value for key, value in model.config.items() if key != "model_type"}}):
        with pytest.raises(LayoutError, match=r"the keys fit several families, whose 'hf' differ.*family="):
            lazysd.convert(bare, to="hf", **more)


@pytest.mark.parametrize("family", ["qwen3_moe", "minimax_m2", "kimi_linear", "deepseek_v3"])
def test_grouped_experts_alone_are_of_any_family(family: str) -> None:
    """NeMo calls those of Qwen3-MoE and MiniMax-M2 the same, vLLM does not; Megatron does."""
    bare = {
        "model.layers.0.mlp.experts.gate_and_up_projs": noise((3, 4, 10)),
        "model.layers.0.mlp.experts.down_projs": noise((3, 5, 4)),
    }
    for to in ("hf", "vllm", "hf-fused"):
        with pytest.raises(LayoutError, match=rf"the keys fit several families, whose '{to}' differ: .*family="):
            lazysd.convert(bare, to)
        assert len(lazysd.convert(bare, to, family=family)) in (2, 9)
    assert_same(lazysd.convert(bare, "nemo"), bare)
    assert_same(lazysd.convert(bare, "megatron"), lazysd.convert(bare, "megatron", family="qwen3_moe"))


def test_a_third_layout_beside_the_stated_one_is_refused() -> None:
    """The same experts twice, in two forms whose keys do not meet."""
    hf = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight": noise((4, 4))
        for e in range(3)
        for w in ("w1", "w2", "w3")
    }
    grouped = lazysd.convert(hf, "nemo", "hf", "minimax_m2")
    for source in ("hf", None):
        with pytest.raises(LayoutError, match=r"side by side.*mlp\.experts|mlp\.experts.*side by side"):
            lazysd.convert({**hf, **grouped}, "vllm", source, "minimax_m2")


@pytest.mark.parametrize(
    ("family", "module", "words"),
    [
        ("kimi_k25", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("minimax_m3_vl", "block_sparse_moe", ("w1", "w3", "w2")),
    ],
)
def test_a_new_name_of_a_module_claims_no_experts_below_it(family: str, module: str, words: tuple[str, ...]) -> None:
    """The same experts once more, in a form whose keys a layout would rename with all the rest of the module."""
    at = f"language_model.model.layers.3.{module}.experts."
    hf = {f"{at}{e}.{word}.weight": noise((4, 4)) for e in range(11) for word in words}
    made = {name: lazysd.convert(hf, name, "hf", family) for name in ("hf-fused", "nemo")}
    for source, target in product(made, ("hf", "hf-fused", "nemo", "vllm")):
        assert len(lazysd.convert(made[source], target, source, family)) == (33 if target == "hf" else 2)
        other = made["nemo" if source == "hf-fused" else "hf-fused"]
        for more in (other, dict([next(iter(other.items()))])):
            with pytest.raises(LayoutError, match=r"experts\.\S+ .* layouts stand side by side"):
                lazysd.convert({**made[source], **more}, target, source, family)


def test_a_stack_that_one_layer_lacks_is_missing() -> None:
    """Also where experts are stacked on disk, below modules of their own."""
    layers = {
        f"model.language_model.layers.{n}.mlp.experts.{k}.weight": noise(dims)
        for n in (0, 1)
        for k, dims in (("fc1", (3, 4, 10)), ("fc2", (3, 5, 4)))
    }
    config = {"model_type": "aria_text", "hidden_size": 4, "moe_num_experts": 3, "intermediate_size": 5}
    assert len(lazysd.convert(layers, "vllm", config=config)) == 4
    layers.pop("model.language_model.layers.1.mlp.experts.fc1.weight")
    for to in ("hf", "hf-fused", "vllm"):
        with pytest.raises(LayoutError, match=r"missing: .*layers\.1\.mlp\.experts\.fc1.*is a shard incomplete"):
            lazysd.convert(layers, to, config=config)


def test_where_a_second_kind_of_experts_starts_is_advised_so_that_it_works() -> None:
    pytest.importorskip("transformers")
    model = saved("ernie4_5_vl_moe")
    with pytest.raises(LayoutError, match=r"state text_config\.moe_num_experts: config=(\{.*\}), or") as caught:
        lazysd.convert(model.disk, to="hf-fused", family="ernie4_5_vl_moe")
    advised = re.search(r"config=(\{.*\}), or", str(caught.value))
    assert advised is not None
    config = json.loads(advised[1].replace("…", str(NUM_EXPERTS)))
    assert_same(lazysd.convert(model.disk, to="hf-fused", family="ernie4_5_vl_moe", config=config), model.fused)
    assert_same(lazysd.convert(model.fused, to="hf", config=config), model.disk)
