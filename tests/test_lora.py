"""LoRA on experts: every layout into every other, bit for bit, and what has to be refused."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, random_hf
from lora_adapters import PREFIX, adapter_config, apart, experts_at, folded, in_layout, native_lora, write_adapter
from patience import calls_of
from safetensors.torch import load_file, save_file

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.graph.leaves import Full
from lazysd.layouts import Layout, Rule
from lazysd.peft.names import LoraNames
from lazysd.peft.tables import native as native_rules
from lazysd.peft.tables import peft_layouts
from lazysd.tensor.lazy import LazyTensor

LAYOUTS = ("nemo", "peft-0.18", "peft-0.19", "peft-per-expert")
FOLDED = ("peft-0.18", "peft-0.19")
SAME = {  # one adapter, as four tools wrote it
    "nemo": "lora_native_r3.safetensors",
    "peft-0.18": "lora_paramwrapper_nemo_r3.safetensors",
    "peft-0.19": "lora_paramwrapper_peft0212_r3/adapter_model.safetensors",
    "peft-per-expert": "lora_per_expert_nemo_r3.safetensors",
}
TRAINED = {"peft-0.18": "peft_paramwrapper_0181_r3", "peft-0.19": "peft_paramwrapper_r3"}
E6 = {"num_experts": 6}


# golden files


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(("source", "target"), list(product(SAME, repeat=2)))
def test_golden_files_into_each_other(golden: Path, source: str, target: str, io: str) -> None:
    ckpt = lazysd.open(golden / SAME[source], io=io)
    assert ckpt.layout == source
    assert_same(ckpt.convert(target, config=E6), load_file(golden / SAME[target]))


@pytest.mark.parametrize(("source", "target"), list(product(SAME, repeat=2)))
def test_golden_files_as_plain_tensors(golden: Path, source: str, target: str) -> None:
    made = lazysd.convert(load_file(golden / SAME[source]), to=target, config=E6)
    assert all(type(tensor) is torch.Tensor for tensor in made.values())
    assert_same(made, load_file(golden / SAME[target]))


@pytest.mark.parametrize(("source", "target"), list(permutations(SAME, 2)))
def test_golden_files_through_a_saved_file(golden: Path, tmp_path: Path, source: str, target: str) -> None:
    lazysd.open(golden / SAME[source]).convert(target, config={**E6, "lora_alpha": 8}).save(tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert_same(found, load_file(golden / SAME[target]))
    assert_same(lazysd.open(tmp_path / "out").convert(source), load_file(golden / SAME[source]))


def unfolded(tensors: dict[str, torch.Tensor], layout: str, E: int, r: int) -> dict[str, torch.Tensor]:
    """The experts' grouped tensors of a folded adapter, by indexing element by element: row e*r+k, column k*E+e."""
    made: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        at, _, rest = key.partition("base_layer.lora_" if "base_layer" in key else "lora_")
        name = "gate_and_up" if "base_layer" in key else "down"
        by_row = rest.startswith("A")
        other = tensor.shape[1] if by_row else tensor.shape[0]
        goes_in = by_row == (layout == "peft-0.19")
        whole = torch.empty((E, other, r) if goes_in else (E, r, other), dtype=tensor.dtype)
        for e in range(E):
            for k in range(r):
                line = tensor[e * r + k] if by_row else tensor[:, k * E + e]
                (whole[e, :, k] if goes_in else whole[e, k]).copy_(line)
        made[f"{at}lora_{name}_{'A' if goes_in else 'B'}"] = whole
    return made


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", TRAINED)
def test_trained_adapters_with_other_modules(golden: Path, source: str, target: str) -> None:
    tensors = load_file(golden / TRAINED[source] / "adapter_model.safetensors")
    others = {key: tensor for key, tensor in tensors.items() if "self_attn" in key}
    experts = unfolded({key: tensor for key, tensor in tensors.items() if key not in others}, source, 6, 3)
    assert len(others) == 8
    made = lazysd.open(golden / TRAINED[source]).convert(target)
    assert_same(made, others | in_layout(experts, target))
    assert_same(made.convert(source), tensors)


def test_a_wrong_fold_order_is_noticed(golden: Path) -> None:
    """The comparison these tests rest on can fail: columns expert-major instead of rank-major."""
    native = load_file(golden / SAME["nemo"])
    key = experts_at(0) + "lora_down_B"
    wrong = native[key].permute(2, 0, 1).reshape(32, 18)
    right = folded(native, "peft-0.19")[experts_at(0) + "lora_B.weight"]
    assert wrong.shape == right.shape
    assert not torch.equal(bits(wrong), bits(right))
    made = lazysd.open(golden / SAME["nemo"]).convert("peft-0.19")
    assert torch.equal(bits(made[experts_at(0) + "lora_B.weight"].materialize()), bits(right))


# detours, slices, time


@pytest.mark.parametrize(("E", "H", "I", "r"), [(3, 4, 5, 2), (1, 1, 1, 1), (2, 8, 8, 4), (4, 6, 3, 3), (5, 3, 7, 8)])
@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_random_bits_and_back_to_the_very_leaves(source: str, target: str, E: int, H: int, I: int, r: int) -> None:  # noqa: E741
    native = native_lora(E, H, I, r, layers=(0, 3))
    ckpt = lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in in_layout(native, source).items()})
    made = ckpt.convert(target, source=source, config={"r": r})
    assert_same(made, in_layout(native, target))
    back = made.convert(source)
    assert_same(back, in_layout(native, source))
    if "peft-per-expert" not in (source, target):
        assert all(back[key] is ckpt[key] for key in ckpt)


@pytest.mark.parametrize("target", LAYOUTS)
def test_slices_are_slices_of_the_whole(golden: Path, target: str) -> None:
    made = lazysd.open(golden / SAME["peft-0.18"], io="pread").convert(target, config=E6)
    for key, whole in load_file(golden / SAME[target]).items():
        for part in ((slice(1, 2),), (slice(None), slice(1, None, 3)), (Ellipsis, slice(0, 1)), (-1,)):
            assert torch.equal(made[key][part].materialize(), whole[part]), (key, part)


def test_folding_reads_an_expert_for_an_expert(golden: Path) -> None:
    """Rows of lora_A are expert-major, so that expert 4 of the grouped tensor takes its own rows and no others."""
    path = golden / SAME["peft-0.19"]
    node = lazysd.open(path).convert("nemo")[experts_at(0) + "lora_gate_and_up_A"]
    assert sum(nbytes for _, _, nbytes in node[4].reads()) == 3 * 32 * 4
    assert torch.equal(node[4].materialize(), load_file(golden / SAME["nemo"])[experts_at(0) + "lora_gate_and_up_A"][4])


@pytest.mark.parametrize("target", ["peft-0.19", "peft-per-expert"])
def test_twice_the_layers_take_twice_the_work(target: str) -> None:
    """128 experts a layer: benchmarks/lora_graph.py measures it, this only notices a quadratic step."""
    dims = {"gate_and_up_A": (128, 2048, 8), "gate_and_up_B": (128, 8, 1536), "down_A": (128, 768, 8)}
    dims["down_B"] = (128, 8, 2048)

    def work(layers: int) -> int:
        nodes = {
            f"{experts_at(layer)}lora_{name}": LazyTensor(Full(0.0), (), shape, "F32")
            for layer in range(layers)
            for name, shape in dims.items()
        }
        ckpt = lazysd.Checkpoint(nodes)
        return calls_of(lambda: ckpt.convert(target))

    work(1)  # what is made once
    assert work(16) < 2.2 * work(8)


# one wrapped parameter, other ranks, base weights beside


@pytest.mark.parametrize("wrapped", ["gate_up", "down"])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("generation", FOLDED)
def test_one_parameter_wrapped_alone(tmp_path: Path, generation: str, target: str, wrapped: str) -> None:
    native = native_lora(wrapped=(wrapped,))
    parameter = {"gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}[wrapped]
    tensors = folded(native, generation)
    assert not any("base_layer" in key for key in tensors)
    write_adapter(tmp_path / "a", tensors, adapter_config(generation, target_parameters=[parameter]))
    made = lazysd.open(tmp_path / "a").convert(target)
    assert_same(made, in_layout(native, target))
    assert_same(made.convert(generation), tensors)
    made.save(tmp_path / "b")
    assert_same(lazysd.open(tmp_path / "b").convert("nemo"), native)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (None, "is not known"),
        (["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "names both"),
        (["lm_head.weight"], "names neither"),
    ],
)
def test_which_parameter_is_wrapped_alone_has_to_be_said(tmp_path: Path, targets: Any, said: str) -> None:
    native = native_lora(wrapped=("down",))
    config = adapter_config("peft-0.19", target_parameters=targets)
    write_adapter(tmp_path, folded(native, "peft-0.19"), config)
    with pytest.raises(LayoutError, match=f"one parameter is wrapped, and target_parameters, .* {said}"):
        lazysd.open(tmp_path).convert("nemo")
    stated = {"target_parameters": ["mlp.experts.down_proj"]}
    assert_same(lazysd.open(tmp_path).convert("nemo", config=stated), native)


@pytest.mark.parametrize("generation", FOLDED)
def test_other_parameters_in_other_layers(tmp_path: Path, generation: str) -> None:
    """Layer 0 has both, layer 1 gate_up only, layer 2 down only: names have to be full, or PEFT would nest others."""
    native = native_lora(layers=(0,)) | native_lora(layers=(1,), wrapped=("gate_up",))
    native |= native_lora(layers=(2,), wrapped=("down",))
    said = adapter_config("nemo")
    write_adapter(tmp_path / "a", native, said)
    made = lazysd.open(tmp_path / "a").convert(generation)
    assert_same(made, folded(native, generation))
    assert made.adapter is not None
    assert made.adapter.values["target_parameters"] == [
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer, name in ((0, "gate_up_proj"), (1, "gate_up_proj"), (0, "down_proj"), (2, "down_proj"))
    ]
    made.save(tmp_path / "b")
    assert_same(lazysd.open(tmp_path / "b").convert("nemo"), native)


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_ranks_by_rank_pattern(tmp_path: Path, source: str, target: str) -> None:
    native = native_lora(r=2, r_down=3, layers=(0, 11))
    words = r"mlp.experts.\d+.down_proj" if source == "peft-per-expert" else "mlp.experts.down_proj"
    config = adapter_config(source, r=2, rank_pattern={words: 3}, alpha_pattern={words: 5})
    write_adapter(tmp_path / "a", in_layout(native, source), config)
    made = lazysd.open(tmp_path / "a").convert(target)
    assert_same(made, in_layout(native, target))
    made.save(tmp_path / "b")
    again = lazysd.open(tmp_path / "b")
    assert again.adapter is not None
    ends = ("0.down_proj", "0.gate_proj") if target == "peft-per-expert" else ("down_proj", "gate_up_proj")
    for layer in (0, 11):
        down, up = (f"model.layers.{layer}.mlp.experts.{end}" for end in ends)
        assert (again.adapter.rank(down), again.adapter.alpha(down)) == (3, 5)
        assert (again.adapter.rank(up), again.adapter.alpha(up)) == (2, 8)
    assert_same(again.convert(source), in_layout(native, source))


@pytest.mark.parametrize("generation", FOLDED)
def test_a_rank_that_does_not_fit(tmp_path: Path, generation: str) -> None:
    native = native_lora(E=3, r=2)
    write_adapter(tmp_path, folded(native, generation), adapter_config(generation, r=4))
    with pytest.raises(LayoutError, match=r"6 is not the number of experts .* times the rank 4"):
        lazysd.open(tmp_path).convert("nemo")
    with pytest.raises(LayoutError, match="one rank is wrong"):
        lazysd.open(tmp_path).convert("nemo", config={"r": 2, "rank_pattern": {"mlp.experts.down_proj": 3}})
    with pytest.raises(LayoutError, match=r"6 is not the number of experts \(config.json 2\) times the rank 2"):
        lazysd.open(tmp_path).convert("nemo", config={"r": 2, "num_experts": 2})
    save_file(folded(native, generation), tmp_path / "bare.safetensors")
    with pytest.raises(LayoutError, match="neither is known"):
        lazysd.open(tmp_path / "bare.safetensors").convert("nemo")


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_base_and_lora_in_one_state_dict(source: str, target: str) -> None:
    base = random_hf(3, 4, 5, layers=2, dtype=torch.float32)
    native = native_lora(3, 4, 5, 2, layers=(0, 1), prefix="model.")
    at = "model.layers.0.self_attn.q_proj.lora_"
    native |= {at + "A.weight": torch.randn(2, 4), at + "B.weight": torch.randn(8, 2)}
    attention = {key: t for key, t in native.items() if "self_attn" in key}
    lora = {key: t for key, t in native.items() if key not in attention}

    def everything(layout: str) -> dict[str, torch.Tensor]:
        weights = dict(base)
        if layout == "nemo":
            weights = {key: t for key, t in base.items() if ".experts." not in key}
            for layer in (0, 1):
                grouped = by_hand(base, 3, layer)["nemo"]
                weights |= {key: t.contiguous().view(torch.float32) for key, t in grouped.items()}
        return weights | attention | in_layout(lora, layout)

    ckpt = lazysd.Checkpoint({key: lazysd.from_torch(t) for key, t in everything(source).items()})
    assert ckpt.layout == source
    made = ckpt.convert(target, config={"num_experts": 3, "r": 2})
    assert_same(made, everything(target))
    assert_same(made.convert(source), everything(source))


@pytest.mark.parametrize("target", ["hf", "hf-fused"])
def test_layouts_without_lora_say_so(golden: Path, target: str) -> None:
    with pytest.raises(LayoutError, match='no form for LoRA on experts; convert to "peft"'):
        lazysd.open(golden / SAME["nemo"]).convert(target)


# which generation


@pytest.mark.parametrize("truth", FOLDED)
def test_square_down_is_undecidable(tmp_path: Path, truth: str) -> None:
    native = native_lora(2, 8, 8, 3, wrapped=("down",))
    config = adapter_config("nemo", r=3, target_parameters=["mlp.experts.down_proj"])
    write_adapter(tmp_path, folded(native, truth), config)
    for ask in (lambda: lazysd.open(tmp_path).layout, lambda: lazysd.open(tmp_path).convert("nemo")):
        with pytest.raises(LayoutError, match=r"state it, --from peft-0\.18 or --from peft-0\.19"):
            ask()
    assert_same(lazysd.open(tmp_path).convert("nemo", source=truth), native)
    other = next(name for name in FOLDED if name != truth)
    wrong = lazysd.open(tmp_path).convert("nemo", source=other)  # what a guess would have given
    assert not torch.equal(wrong[experts_at(0) + "lora_down_A"].materialize(), native[experts_at(0) + "lora_down_A"])


@pytest.mark.parametrize("truth", FOLDED)
def test_square_gate_up_is_undecidable(tmp_path: Path, truth: str) -> None:
    native = native_lora(2, 8, 4, 3, wrapped=("gate_up",))  # 2I == H
    config = adapter_config("nemo", r=3, target_parameters=["mlp.experts.gate_up_proj"])
    write_adapter(tmp_path, folded(native, truth), config)
    with pytest.raises(LayoutError, match=r"--from peft-0\.18 or --from peft-0\.19"):
        lazysd.open(tmp_path).convert("nemo")
    assert_same(lazysd.open(tmp_path).convert("nemo", source=truth), native)


@pytest.mark.parametrize("size", [(8, 8), (8, 4), (32, 24)])  # I == H, 2I == H, neither
@pytest.mark.parametrize("truth", FOLDED)
def test_two_wrapped_parameters_decide(tmp_path: Path, truth: str, size: tuple[int, int]) -> None:
    native = native_lora(2, *size, 3)
    write_adapter(tmp_path, folded(native, truth), adapter_config("nemo", r=3))
    assert lazysd.open(tmp_path).layout == truth
    assert_same(lazysd.open(tmp_path).convert("nemo"), native)


@pytest.mark.parametrize(
    ("version", "layout"),
    [
        ("0.17.1", "peft-0.18"),
        ("0.18.1", "peft-0.18"),
        ("0.19.0", "peft-0.18"),
        ("0.19.1", "peft-0.19"),
        ("0.20.0", "peft-0.19"),
        ("0.21.2.dev0", "peft-0.19"),
        ("1.0", "peft-0.19"),
    ],
)
def test_the_version_decides(tmp_path: Path, version: str, layout: str) -> None:
    native = native_lora(2, 8, 8, 3, wrapped=("down",))
    config = adapter_config("nemo", r=3, target_parameters=["mlp.experts.down_proj"], peft_version=version)
    write_adapter(tmp_path, folded(native, layout), config)
    assert lazysd.open(tmp_path).layout == layout
    assert_same(lazysd.open(tmp_path).convert("nemo"), native)


@pytest.mark.parametrize(("stamp", "layout"), [("peft-0.18", "peft-0.18"), ("peft-0.19.1", "peft-0.19")])
def test_the_stamp_of_nemo_decides(tmp_path: Path, stamp: str, layout: str) -> None:
    native = native_lora(2, 8, 8, 3, wrapped=("down",))
    config = adapter_config("nemo", r=3, target_parameters=["mlp.experts.down_proj"])
    write_adapter(tmp_path, folded(native, layout), config, {"paramwrapper_layout": stamp, "dim": 3})
    assert lazysd.open(tmp_path).layout == layout
    assert_same(lazysd.open(tmp_path).convert("nemo"), native)


@pytest.mark.parametrize(
    ("version", "stamp", "said"),
    [
        ("0.21.2", "peft-0.18", "peft_version 0.21.2 in .* says peft-0.19; paramwrapper_layout peft-0.18"),
        ("0.21.2", None, "peft_version 0.21.2 in .* says peft-0.19; the shapes .* says? peft-0.18"),
        (None, "peft-0.19.1", "paramwrapper_layout peft-0.19.1 in .* says peft-0.19; the shapes .* peft-0.18"),
        (None, "peft-7", "paramwrapper_layout is 'peft-7', known are"),
    ],
)
def test_evidence_that_disagrees(tmp_path: Path, version: Any, stamp: Any, said: str) -> None:
    config = adapter_config("nemo", **({"peft_version": version} if version else {}))
    write_adapter(
        tmp_path, folded(native_lora(), "peft-0.18"), config, {"paramwrapper_layout": stamp} if stamp else None
    )
    with pytest.raises(LayoutError, match=said):
        lazysd.open(tmp_path).convert("nemo")


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"peft_version": "0.18.1"}, "peft_version 0.18.1 .* says peft-0.18"), ({}, "shapes .* forbid")],
)
def test_what_is_stated_against_evidence(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    write_adapter(tmp_path, folded(native_lora(), "peft-0.18"), adapter_config("nemo", **fields))
    with pytest.raises(LayoutError, match=f"layout 'peft-0.19' was stated, but .*{said}"):
        lazysd.open(tmp_path).convert("nemo", source="peft-0.19")


def test_shapes_of_no_generation(tmp_path: Path) -> None:
    tensors = folded(native_lora(3, 4, 5, 2), "peft-0.19")
    tensors[experts_at(0) + "lora_A.weight"] = torch.zeros(6, 7)
    write_adapter(tmp_path, tensors, adapter_config("nemo"))
    with pytest.raises(LayoutError, match="fit no generation"):
        lazysd.open(tmp_path).convert("nemo")


# per-expert, and back


def differing(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Per-expert LoRA whose gate and up have each a lora_A of its own."""
    made = apart(native)
    return {
        key: torch.randn(t.shape, generator=torch.Generator().manual_seed(number)) if "up_proj.lora_A" in key else t
        for number, (key, t) in enumerate(made.items())
    }


@pytest.mark.parametrize("target", ["nemo", *FOLDED])
def test_gate_and_up_that_differ_are_an_error_that_names_them(tmp_path: Path, target: str) -> None:
    tensors = apart(native_lora(finite=True, layers=(0, 7)))
    key = experts_at(7) + "1.up_proj.lora_A.weight"
    bits(tensors[key])[1, 2] ^= 1
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert"))
    made = lazysd.open(tmp_path / "a").convert(target)
    with pytest.raises(
        LayoutError, match=r"layers\.7\.mlp\.experts\.1\.gate_proj\.lora_A.*up_proj.*differ.*--merge-rank"
    ):
        made.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("target", ["nemo", *FOLDED, "peft-per-expert"])
@pytest.mark.parametrize("patterns", [False, True])
def test_merge_rank_keeps_the_update(tmp_path: Path, target: str, rslora: bool, patterns: bool) -> None:
    """The delta of every expert's gate, up and down, in float64, before and after, scale included."""
    E, H, I, r = 3, 4, 5, 2  # noqa: E741
    tensors = differing(native_lora(E, H, I, r, layers=(0, 1), finite=True))
    fields: dict[str, Any] = {"use_rslora": rslora}
    if patterns:
        fields |= {"alpha_pattern": {r"layers\.1\..*(gate|up)_proj": 3, "mlp.experts.gate_up_proj": 99}}
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert", **fields))
    lazysd.open(tmp_path / "a").convert(target, merge_rank=True).save(tmp_path / "b")
    found = lazysd.open(tmp_path / "b")
    assert found.layout == target
    assert found.adapter is not None
    native = {key: node.materialize().double() for key, node in found.convert("nemo").items()}
    for layer, e in product((0, 1), range(E)):
        for parameter, words, rank in (
            ("gate_up_proj", ("gate_proj", "up_proj"), 2 * r),
            ("down_proj", ("down_proj",), r),
        ):
            name = f"model.layers.{layer}.mlp.experts." + (f"{e}.{words[0]}" if "expert" in target else parameter)
            alpha_now, rank_now = found.adapter.alpha(name), found.adapter.rank(name)
            assert rank_now == rank
            assert alpha_now is not None
            alpha = 3 if patterns and layer == 1 and rank == 2 * r else 8
            before, after = (a / (n**0.5 if rslora else n) for a, n in ((alpha, r), (alpha_now, rank)))
            at = experts_at(layer)
            short = "down" if parameter == "down_proj" else "gate_and_up"
            delta = after * native[f"{at}lora_{short}_A"][e] @ native[f"{at}lora_{short}_B"][e]
            parts = [[tensors[f"{at}{e}.{w}.lora_{letter}.weight"].double() for letter in "BA"] for w in words]
            expected = before * torch.cat([b @ a for b, a in parts]).T
            torch.testing.assert_close(delta, expected, rtol=1e-12, atol=1e-12)


def test_merge_rank_only_where_gate_and_up_are_apart(golden: Path) -> None:
    with pytest.raises(LayoutError, match="in layout 'nemo' they share it"):
        lazysd.open(golden / SAME["nemo"]).convert("peft-0.19", merge_rank=True)


def test_apart_they_may_differ(tmp_path: Path) -> None:
    tensors = differing(native_lora(finite=True))
    write_adapter(tmp_path / "a", tensors, adapter_config("peft-per-expert"))
    ckpt = lazysd.open(tmp_path / "a").convert("peft-per-expert")
    ckpt.save(tmp_path / "b")
    assert_same(lazysd.open(tmp_path / "b"), tensors)


PER_EXPERT_FAULTS = {
    "a missing expert": (
        ["1.down_proj.lora_A.weight", "1.down_proj.lora_B.weight"],
        {},
        r"missing.*experts\.1\.down_proj",
    ),
    "the last expert, as config.json knows": (
        [f"2.{word}.lora_{x}.weight" for word in ("gate_proj", "up_proj", "down_proj") for x in "AB"],
        {"num_experts": 3},
        r"missing.*experts\.2\.",
    ),
    "gate without up": ([f"{e}.up_proj.lora_{x}.weight" for e in range(3) for x in "AB"], {}, r"missing.*up_proj"),
    "A without B": ([f"{e}.down_proj.lora_B.weight" for e in range(3)], {}, r"the LoRA of down_proj has no lora_B"),
}


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("fault", PER_EXPERT_FAULTS)
def test_incomplete_groups(fault: str, target: str) -> None:
    lost, config, said = PER_EXPERT_FAULTS[fault]
    tensors = {key: t for key, t in apart(native_lora()).items() if key.removeprefix(experts_at(0)) not in lost}
    with pytest.raises(LayoutError, match=said):
        lazysd.convert(tensors, to=target, config=config)


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("word", ["up_proj", "down_proj"])
def test_differing_ranks_in_a_group(word: str, target: str) -> None:
    tensors = apart(native_lora())
    tensors[f"{experts_at(0)}1.{word}.lora_A.weight"] = torch.zeros(3, 4 if word == "up_proj" else 5)
    with pytest.raises(LayoutError, match="one of the two is wrong"):
        lazysd.convert(tensors, to=target, config={})


def test_a_lost_factor_of_a_folded_adapter(tmp_path: Path) -> None:
    tensors = folded(native_lora(), "peft-0.19")
    del tensors[experts_at(0) + "base_layer.lora_B.weight"]
    write_adapter(tmp_path, tensors, adapter_config("peft-0.19"))
    with pytest.raises(LayoutError, match="the LoRA of gate_up_proj has no lora_B"):
        lazysd.open(tmp_path).convert("nemo")


def test_a_missing_grouped_tensor_of_one_layer(golden: Path) -> None:
    ckpt = lazysd.open(golden / SAME["nemo"]).drop("*layers.1*lora_down_A")
    with pytest.raises(LayoutError, match=r"layers\.1\.mlp\.experts: the LoRA of down_proj has no lora_A"):
        ckpt.convert("peft-0.19")


# DoRA, biases, strangers


@pytest.mark.parametrize("source", ["peft-0.19", "peft-per-expert"])
@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_A.bias", "bias"),
        ("lora_B.bias", "bias"),
        ("lora_C.weight", "no rule covers it"),
    ],
)
def test_what_grouped_experts_cannot_hold_is_refused(tmp_path: Path, source: str, end: str, why: str) -> None:
    tensors = in_layout(native_lora(), source)
    stranger = experts_at(0) + ("1.gate_proj." if "expert" in source else "") + end
    tensors[stranger] = torch.zeros(5)
    write_adapter(tmp_path, tensors, adapter_config(source))
    for target in LAYOUTS:
        with pytest.raises(LayoutError, match=rf"{stranger}.*{why}"):
            lazysd.open(tmp_path).convert(target)


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_what_other_modules_hold_is_carried(tmp_path: Path, source: str, target: str) -> None:
    native = native_lora()
    at = PREFIX + "layers.0.self_attn."
    others = {
        at + "q_proj.lora_A.weight": torch.randn(2, 4),
        at + "q_proj.lora_B.weight": torch.randn(4, 2),
        at + "q_proj.lora_magnitude_vector": torch.randn(4),
        at + "q_proj.lora_B.bias": torch.randn(4),
        at + "q_proj.bias": torch.randn(4),
        PREFIX + "embed_tokens.lora_embedding_A": torch.randn(2, 7),
        PREFIX + "embed_tokens.lora_embedding_B": torch.randn(4, 2),
        PREFIX + "layers.0.mlp.shared_expert.gate_proj.lora_A.weight": torch.randn(2, 4),
        PREFIX + "layers.0.mlp.shared_expert.gate_proj.lora_B.weight": torch.randn(5, 2),
        "base_model.model.lm_head.weight": torch.randn(7, 4),
    }
    write_adapter(tmp_path, in_layout(native, source) | others, adapter_config(source))
    assert_same(lazysd.open(tmp_path).convert(target), in_layout(native, target) | others)


# experts without a gate


@pytest.fixture
def ungated() -> Any:
    """A family like Nemotron-H: up and down only, under mixer.experts."""
    family, names = (
        "ungated_test",
        LoraNames("{prefix}layers.{layer}.mixer.experts.", inner="up_proj", inner_words=("up_proj",)),
    )
    up, down = (names.experts + "{e}." + word + "_proj.weight" for word in ("up", "down"))
    base = (Rule(up, up, "[e] i h -> [e] i h"), Rule(down, down, "[e] h i -> [e] h i"))
    tables = (
        Layout("nemo", family, native_rules(names), companion=names),
        *peft_layouts(family, names, base, {"e": ("n",)}),
    )
    for table in tables:
        lazysd.layouts.register(table)
    yield family
    for table in tables:
        del lazysd.layouts.registry._LAYOUTS[family, table.name]


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)))
def test_ungated_experts(ungated: str, source: str, target: str) -> None:
    native = native_lora(3, 4, 5, 2, gated=False)

    def written(layout: str) -> dict[str, torch.Tensor]:
        made = apart(native, ("up_proj",)) if layout == "peft-per-expert" else in_layout(native, layout)
        return {key.replace(".mlp.", ".mixer."): t for key, t in made.items()}

    config = {"r": 2, "lora_alpha": 4, "model_type": ungated}
    made = lazysd.convert(written(source), to=target, family=ungated, source=source, config=config)
    assert_same(made, written(target))


def test_ungated_generations_by_the_sizes_of_config_json(ungated: str) -> None:
    """Without a gate, both parameters fit both generations (H and I swap places); the model's sizes decide."""
    native = native_lora(3, 4, 5, 2, gated=False)
    tensors = {key.replace(".mlp.", ".mixer."): t for key, t in folded(native, "peft-0.18").items()}
    with pytest.raises(LayoutError, match=r"--from peft-0\.18 or --from peft-0\.19"):
        lazysd.convert(tensors, to="nemo", family=ungated, config={"r": 2})
    sizes = {"r": 2, "hidden_size": 4, "moe_intermediate_size": 5}
    made = lazysd.convert(tensors, to="nemo", family=ungated, config=sizes)
    assert_same(made, {key.replace(".mlp.", ".mixer."): t for key, t in native.items()})


def test_missing_experts_have_their_own_error() -> None:
    tensors = apart(native_lora())
    del tensors[experts_at(0) + "2.up_proj.lora_B.weight"]
    with pytest.raises(MissingExpertsError, match="1 missing"):
        lazysd.convert(tensors, to="nemo")


@pytest.mark.parametrize("lost", ["A", "B"])
@pytest.mark.parametrize("to", LAYOUTS)
def test_one_factor_of_another_module_is_as_little_as_one_of_experts(to: str, lost: str) -> None:
    native = native_lora(3, 4, 5, 2)
    at = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    both = native | {at + "A.weight": torch.randn(2, 4), at + "B.weight": torch.randn(8, 2)}
    assert at + "B.weight" in lazysd.convert(both, to=to, source="nemo")
    del both[at + f"{lost}.weight"]
    with pytest.raises(LayoutError, match=rf"q_proj\.lora_.\.weight has no .*q_proj\.lora_{lost}\.weight: one factor"):
        lazysd.convert(both, to=to, source="nemo")
