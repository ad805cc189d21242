"""merge: base + scale * A @ B against plain torch in float64, in every layout, to the same bits however it is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits, by_hand, expert_key, write
from lora_adapters import PREFIX, adapter_config, apart, experts_at, in_layout, native_lora, write_adapter
from safetensors.torch import load_file

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.graph.compute import AddMatmul
from lazysd.graph.rewrite import build
from lazysd.merging import merge
from lazysd.peft.config import AdapterConfig

E, H, I, R = 3, 4, 5, 2  # noqa: E741
LAYOUTS = ("nemo", "peft-0.18", "peft-0.19", "peft-per-expert")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CONFIG = {"model_type": "qwen3_moe", "num_experts": E}


def finite_hf(dtype: torch.dtype = torch.float32, layers: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(7, H), "lm_head.weight": torch.randn(7, H)}
    for layer in range(layers):
        made[f"model.layers.{layer}.self_attn.q_proj.weight"] = torch.randn(6, H)
        made[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.randn(6)
        for e in range(E):
            for name, dims in (("gate", (I, H)), ("up", (I, H)), ("down", (H, I))):
                made[expert_key(e, name, layer)] = torch.randn(dims)
    return {key: tensor.to(dtype) for key, tensor in made.items()}


def expected(
    base: Mapping[str, torch.Tensor], factors: Mapping[str, torch.Tensor], scale: Any
) -> dict[str, torch.Tensor]:
    """base + scale * B @ A of LoRA for single weights, in float64; `scale` is a number or a function of the module."""
    made = {key: tensor.double() for key, tensor in base.items()}
    for key, a in factors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = factors[key.replace("lora_A", "lora_B")]
            by = scale(module) if callable(scale) else scale
            made[module + ".weight"] += by * (b.double() @ a.double())
    return made


def assert_rounded(found: Mapping[str, Any], exact: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Every element within half a unit of the last place of its dtype, and the few units a sum in float32 may lose."""
    assert set(found) == set(exact)
    summed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for key, wanted in exact.items():
        here = found[key].materialize()
        assert here.dtype == dtype, key
        limit = 0.501 * torch.finfo(dtype).eps * wanted.abs() + 4 * summed * wanted.abs().max()
        close = bool(((here.double() - wanted).abs() <= limit).all())
        assert close, key


@pytest.fixture
def base_of(tmp_path: Path) -> Any:
    def make(dtype: torch.dtype = torch.float32, layout: str = "hf") -> tuple[Any, dict[str, torch.Tensor]]:
        tensors = finite_hf(dtype)
        ckpt = lazysd.open(write(tmp_path / "base", tensors, config=CONFIG))
        if layout != "hf":
            ckpt.convert(layout).save(tmp_path / "converted")
            ckpt = lazysd.open(tmp_path / "converted")
        return ckpt, tensors

    return make


def adapter_in(folder: Path, layout: str = "peft-0.19", **fields: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter folder, and the same as per-expert factors."""
    native = native_lora(E, H, I, R, layers=(0, 1), finite=True)
    write_adapter(folder, in_layout(native, layout), adapter_config(layout, **fields))
    return lazysd.open(folder), apart(native)


# the golden file that PEFT merged


@pytest.mark.parametrize("name", ["lora_paramwrapper_nemo_r3.safetensors", "lora_paramwrapper_peft0212_r3"])
def test_what_peft_merged(golden: Path, name: str) -> None:
    base = lazysd.open(golden / "qwen3_moe_tiny").map(lambda t: t.to(torch.float32))
    merged = merge(base, lazysd.open(golden / name), to="hf-fused", config={"r": 3, "lora_alpha": 8})
    for short, wanted in load_file(golden / "merged_expected_r3.safetensors").items():
        key = "model.layers.0.mlp.experts." + short.rsplit(".", 1)[-1]
        found = merged[key].materialize()
        torch.testing.assert_close(found, wanted, rtol=2e-7, atol=2e-7)
        assert not torch.equal(found, base.convert("hf-fused")[key].materialize())


@pytest.mark.parametrize("wrong", ["peft-0.18", "peft-0.19"])
def test_the_golden_comparison_can_fail(golden: Path, wrong: str) -> None:
    """One fold order for another: what a guess gives is far from what PEFT merged."""
    base = lazysd.open(golden / "qwen3_moe_tiny").map(lambda t: t.to(torch.float32))
    native = load_file(golden / "lora_native_r3.safetensors")
    key = experts_at(0) + "lora_down_B"  # ranks and experts swapped, as a wrong order of columns does
    native[key] = native[key].transpose(0, 1).reshape(6, 3, 32).contiguous()
    lora = lazysd.Checkpoint({k: lazysd.from_torch(t) for k, t in in_layout(native, wrong).items()})
    merged = merge(base, lora, to="hf-fused", source=wrong, config={"r": 3, "lora_alpha": 8})
    wanted = load_file(golden / "merged_expected_r3.safetensors")
    down = next(t for k, t in wanted.items() if k.endswith("down_proj"))
    assert (merged["model.layers.0.mlp.experts.down_proj"].materialize() - down).abs().max() > 0.5


# every layout, dtype, scale


@pytest.mark.parametrize("adapter_layout", LAYOUTS)
@pytest.mark.parametrize("base_layout", ["hf", "hf-fused", "nemo"])
@pytest.mark.parametrize("to", [None, "hf", "nemo", "hf-fused"])
def test_every_layout(base_of: Any, tmp_path: Path, base_layout: str, adapter_layout: str, to: str | None) -> None:
    base, tensors = base_of(layout=base_layout)
    adapter, factors = adapter_in(tmp_path / "a", adapter_layout)
    merged = merge(base, adapter, to=to)
    assert merged.layout == (to or base_layout)
    merged.save(tmp_path / "out")
    found = lazysd.open(tmp_path / "out")
    assert found.layout == (to or base_layout)
    exact = expected(tensors, factors, 8 / R)
    assert_rounded(found.convert("hf"), exact, torch.float32)
    if found.layout == "nemo":  # not by our own way back alone
        narrow = {key: tensor.float() for key, tensor in exact.items()}
        for key, grouped in by_hand(narrow, E)["nemo"].items():
            wanted = grouped.contiguous().view(torch.float32)
            torch.testing.assert_close(found[key].materialize(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_rounded_once(base_of: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    base, tensors = base_of(dtype)
    adapter, factors = adapter_in(tmp_path / "a")
    merged = merge(base, adapter)
    assert_rounded(merged, expected(tensors, factors, 8 / R), dtype)
    untouched = [key for key in tensors if ".experts." not in key]
    assert_same({key: merged[key] for key in untouched}, {key: tensors[key] for key in untouched})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rslora", [False, True])
def test_rslora_and_patterns(base_of: Any, tmp_path: Path, layout: str, rslora: bool) -> None:
    base, tensors = base_of()
    native = native_lora(E, H, I, 2, r_down=3, layers=(0, 1), finite=True)
    down = r"experts\.\d+\.down_proj" if layout == "peft-per-expert" else "experts.down_proj"
    config = adapter_config(
        layout, use_rslora=rslora, rank_pattern={down: 3}, alpha_pattern={rf"layers.1.mlp.{down}": 5}
    )
    write_adapter(tmp_path / "a", in_layout(native, layout), config)

    def scale(module: str) -> float:
        rank, alpha = (3 if "down" in module else 2), (5 if "down" in module and "layers.1" in module else 8)
        return float(alpha / rank**0.5) if rslora else alpha / rank

    exact = expected(tensors, apart(native), scale)
    assert_rounded(merge(base, lazysd.open(tmp_path / "a")), exact, torch.float32)


def test_other_modules_embeddings_and_whole_tensors(base_of: Any, tmp_path: Path) -> None:
    base, tensors = base_of()
    native = native_lora(E, H, I, R, layers=(0, 1), finite=True)
    q = PREFIX + "layers.0.self_attn.q_proj."
    others = {q + "lora_A.weight": torch.randn(R, H), q + "lora_B.weight": torch.randn(6, R)}
    more = {
        PREFIX + "embed_tokens.lora_embedding_A": torch.randn(R, 7),
        PREFIX + "embed_tokens.lora_embedding_B": torch.randn(H, R),
        "base_model.model.lm_head.weight": torch.randn(7, H),
        q + "bias": torch.randn(6),
    }
    write_adapter(tmp_path / "a", in_layout(native, "peft-0.19") | others | more, adapter_config())
    exact = expected(tensors, apart(native) | others, 4.0)
    a, b = (more[f"{PREFIX}embed_tokens.lora_embedding_{x}"].double() for x in "AB")
    exact["model.embed_tokens.weight"] += 4 * (b @ a).T
    exact["lm_head.weight"] = more["base_model.model.lm_head.weight"].double()
    exact["model.layers.0.self_attn.q_proj.bias"] = more[q + "bias"].double()
    assert_rounded(merge(base, lazysd.open(tmp_path / "a")), exact, torch.float32)


def test_per_expert_with_gate_and_up_of_their_own(base_of: Any, tmp_path: Path) -> None:
    base, tensors = base_of()
    factors = apart(native_lora(E, H, I, R, layers=(0, 1), finite=True))
    for number, key in enumerate(key for key in factors if "up_proj.lora_A" in key):
        factors[key] = torch.randn(R, H, generator=torch.Generator().manual_seed(number))
    write_adapter(tmp_path / "a", factors, adapter_config("peft-per-expert"))
    assert_rounded(merge(base, lazysd.open(tmp_path / "a")), expected(tensors, factors, 4.0), torch.float32)


@pytest.mark.parametrize("wrapped", ["gate_up", "down"])
def test_one_wrapped_parameter(base_of: Any, tmp_path: Path, wrapped: str) -> None:
    base, tensors = base_of()
    native = native_lora(E, H, I, R, layers=(1,), finite=True, wrapped=(wrapped,))
    config = adapter_config(target_parameters=[f"mlp.experts.{wrapped}_proj"])
    write_adapter(tmp_path / "a", in_layout(native, "peft-0.19"), config)
    assert_rounded(merge(base, lazysd.open(tmp_path / "a")), expected(tensors, apart(native), 4.0), torch.float32)


def test_the_sizes_of_the_base_decide_the_generation(tmp_path: Path) -> None:
    """Down alone, without a stamp: its shape fits both generations, one of them with this base."""
    tensors = finite_hf()
    base = lazysd.open(write(tmp_path / "base", tensors))
    native = native_lora(E, H, I, R, finite=True, wrapped=("down",))
    for layout in ("peft-0.18", "peft-0.19"):
        config = adapter_config("nemo", target_parameters=["mlp.experts.down_proj"])
        write_adapter(tmp_path / layout, in_layout(native, layout), config)
        exact = expected(tensors, apart(native), 4.0)
        assert_rounded(merge(base, lazysd.open(tmp_path / layout)), exact, torch.float32)


def test_an_undecidable_adapter_is_stated(tmp_path: Path) -> None:
    n = 4
    names = {key: torch.randn(n, n) for e in range(E) for key in (expert_key(e, w) for w in ("gate", "up", "down"))}
    base = lazysd.open(write(tmp_path / "base", names))
    native = native_lora(E, n, n, R, finite=True, wrapped=("down",))
    said = adapter_config("nemo", target_parameters=["mlp.experts.down_proj"])
    adapter = lazysd.open(write_adapter(tmp_path / "a", in_layout(native, "peft-0.18"), said))
    with pytest.raises(LayoutError, match=r"--from peft-0\.18 or --from peft-0\.19"):
        merge(base, adapter)
    exact = expected(names, apart(native), 4.0)
    assert_rounded(merge(base, adapter, source="peft-0.18"), exact, torch.float32)
    assert_rounded(merge(base, adapter.convert("peft-0.18", source="peft-0.18")), exact, torch.float32)
    known = AdapterConfig({"r": R, "lora_alpha": 8, "target_parameters": ["mlp.experts.down_proj"]})
    named = lazysd.Checkpoint(dict(adapter), layout="peft-0.18", family="qwen3_moe", adapter=known)
    assert_rounded(merge(base, named), exact, torch.float32)
    with pytest.raises(AssertionError):
        assert_rounded(merge(base, adapter, source="peft-0.19"), exact, torch.float32)


def test_config_json_does_not_speak_for_the_adapter(tmp_path: Path) -> None:
    tensors = finite_hf()
    odd = CONFIG | {"r": 99, "lora_alpha": 99, "use_rslora": True, "bias": True, "rank_pattern": {".*": 7}}
    base = lazysd.open(write(tmp_path / "base", tensors, config=odd))
    adapter, factors = adapter_in(tmp_path / "a")
    assert_rounded(merge(base, adapter), expected(tensors, factors, 4.0), torch.float32)


def test_a_model_of_no_known_layout(tmp_path: Path) -> None:
    weight, a, b = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2)
    base = lazysd.open(write(tmp_path / "base", {"encoder.fc.weight": weight}))
    tensors = {"base_model.model.encoder.fc.lora_A.weight": a, "base_model.model.encoder.fc.lora_B.weight": b}
    write_adapter(tmp_path / "a", tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["fc"]})
    merged = merge(base, lazysd.open(tmp_path / "a"))
    assert_rounded(merged, {"encoder.fc.weight": weight.double() + 1.5 * b.double() @ a.double()}, torch.float32)


# the same bits however it is cut


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "N", "r"), [(48, 32, 3), (7, 5, 16), (64, 1, 8), (1, 64, 33), (130, 96, 64)])
def test_a_slice_has_the_bits_of_the_whole(M: int, N: int, r: int, dtype: torch.dtype) -> None:
    torch.manual_seed(M)
    parts = (torch.randn(M, N).to(dtype), torch.randn(M, r), torch.randn(r, N))
    node = build(AddMatmul(0.7), tuple(map(lazysd.from_torch, parts)))
    whole = node.materialize()
    for cut in (
        (slice(0, 1),),
        (slice(1, 4),),
        (slice(None), slice(0, 1)),
        (slice(M // 2, None), slice(None, None, 2)),
    ):
        assert torch.equal(bits(node[cut].materialize()), bits(whole[cut]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_float64_factors_are_multiplied_in_float64(dtype: torch.dtype) -> None:
    """As PEFT does: the update in the factors' dtype, rounded once, when it is added."""
    base = torch.zeros(1, 1, dtype=dtype)
    left, right = torch.tensor([[2.0**20 + 1, -(2.0**20)]]).double(), torch.tensor([[2.0**20 - 1], [2.0**20]]).double()
    for a, b in ((left, right), (left, right.float()), (left.float(), right)):
        node = build(AddMatmul(1.0), tuple(map(lazysd.from_torch, (base, a, b))))
        assert node.dtype == dtype
        assert node.materialize().item() == -1.0  # float32 gives 0


def test_complex_factors_are_refused_over_a_real_base() -> None:
    real, imaginary = torch.zeros(2, 2), torch.full((2, 2), 1j)
    for parts in ((real, imaginary, real), (real, real, imaginary), (real, imaginary, imaginary)):
        with pytest.raises(ValueError, match=r"C64.*F32 base"):
            build(AddMatmul(1.0), tuple(map(lazysd.from_torch, parts)))
    node = build(AddMatmul(1.0), tuple(map(lazysd.from_torch, (imaginary, real, imaginary))))
    assert torch.equal(node.materialize(), imaginary)


def test_workers_and_budgets_change_no_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"gate": (384, 512), "up": (384, 512), "down": (512, 384)}
    tensors = {expert_key(e, w): torch.randn(dims) for e in range(4) for w, dims in shapes.items()}
    write(tmp_path / "base", tensors)
    native = native_lora(4, 512, 384, 8, finite=True)
    write_adapter(tmp_path / "a", in_layout(native, "peft-0.19"), adapter_config(r=8))
    made = []
    for number, (budget, workers) in enumerate((("128MB", 1), ("80MB", 2), ("40MB", 1))):
        merged = merge(lazysd.open(tmp_path / "base"), lazysd.open(tmp_path / "a"), to="nemo")
        merged.save(tmp_path / str(number), max_memory=budget, workers=workers)
        made.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]


# what is refused


Q = PREFIX + "layers.0.self_attn.q_proj."


def pair(module: str = Q, a: tuple[int, ...] = (R, H), b: tuple[int, ...] = (6, R)) -> dict[str, torch.Tensor]:
    return {module + "lora_A.weight": torch.zeros(a), module + "lora_B.weight": torch.zeros(b)}


FULL = [f"layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("gate_up_proj", "down_proj")]
REFUSED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "a stranger": (pair(PREFIX + "layers.9.x."), {}, r"layers\.9\.x\.lora_A.*no weight of the base"),
    "A without B": ({Q + "lora_A.weight": torch.zeros(R, H)}, {}, r"q_proj\.lora_A\.weight has no .*lora_B"),
    "B without A": ({Q + "lora_B.weight": torch.zeros(6, R)}, {}, r"q_proj\.lora_B\.weight has no .*lora_A"),
    "another layer's": (
        pair(experts_at(2), (E * R, I), (H, E * R)),
        {"target_parameters": [*FULL, "layers.2.mlp.experts.down_proj"]},
        r"layers\.2\.mlp\.experts\.0\.down_proj.*no weight of the base",
    ),
    "shapes": (pair(a=(R, 9)), {}, "belongs to another base"),
    "no matrices": (pair(a=(R, H, 1)), {}, "no matrices"),
    "rank 0": (pair(a=(0, H), b=(6, 0)), {}, "no matrices"),
    "a rank": (pair(a=(3, H), b=(6, 3)), {}, "has rank 3, .* says 2"),
    "a resized vocabulary": ({"base_model.model.lm_head.weight": torch.zeros(9, H)}, {}, "resized in the base first"),
    "DoRA's vectors": (
        {Q + "lora_magnitude_vector": torch.zeros(6)},
        {},
        "lora_magnitude_vector alone is no whole update",
    ),
    "DoRA": ({}, {"use_dora": True}, "adapter_config.json sets use_dora"),
    "PiSSA": ({}, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    "fan_in_fan_out": ({}, {"fan_in_fan_out": True}, "fan_in_fan_out"),
    "no alpha": ({}, {"lora_alpha": None}, "no lora_alpha is known"),
    "one weight twice": (
        pair() | pair(Q.removeprefix("base_model.model.")),
        {},
        r"q_proj\.weight: .* two updates of it",
    ),
    "a whole tensor and LoRA": (pair() | {Q + "weight": torch.zeros(6, H)}, {}, "two updates of it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(base_of: Any, tmp_path: Path, case: str) -> None:
    base, _ = base_of()
    more, fields, said = REFUSED[case]
    native = native_lora(E, H, I, R, layers=(0, 1), finite=True)
    tensors = in_layout(native, "peft-0.19") | more
    write_adapter(tmp_path / "a", tensors, adapter_config(**fields))
    with pytest.raises(LayoutError, match=said):
        merge(base, lazysd.open(tmp_path / "a"))


def test_a_lost_expert_is_an_error(base_of: Any, tmp_path: Path) -> None:
    base, _ = base_of()
    factors = apart(native_lora(E, H, I, R, finite=True))
    kept = {key: t for key, t in factors.items() if ".experts.2." not in key}
    write_adapter(tmp_path / "a", kept, adapter_config("peft-per-expert"))
    with pytest.raises(LayoutError, match=r"missing.*experts\.2\."):
        merge(base, lazysd.open(tmp_path / "a"))


@pytest.mark.parametrize("code", [torch.float8_e4m3fn, torch.int8])
def test_a_quantised_base_is_refused(tmp_path: Path, code: torch.dtype) -> None:
    tensors = {"fc.weight": torch.zeros(6, 5).to(code)}
    base = lazysd.open(write(tmp_path / "base", tensors))
    lora = {"fc.lora_A.weight": torch.zeros(2, 5), "fc.lora_B.weight": torch.zeros(6, 2)}
    write_adapter(tmp_path / "a", lora, {"r": 2, "lora_alpha": 2})
    with pytest.raises(LayoutError, match=r"is quantised .*dequantise the base"):
        merge(base, lazysd.open(tmp_path / "a"))


def test_an_adapter_of_more_experts(base_of: Any, tmp_path: Path) -> None:
    base, _ = base_of()
    native = native_lora(4, H, I, R, finite=True)
    write_adapter(tmp_path / "a", in_layout(native, "nemo"), adapter_config("nemo"))
    with pytest.raises(LayoutError, match=r"lora_down_A: axis e has size 4, expected 3"):
        merge(base, lazysd.open(tmp_path / "a"))


# plan, command line, memory


def test_nothing_is_read_and_plans_say_lossy(base_of: Any, tmp_path: Path) -> None:
    base, _ = base_of()
    adapter, _ = adapter_in(tmp_path / "a")
    plan = merge(base, adapter, to="nemo").plan()
    assert plan.lossy == (f"merge of a LoRA update ({2 * 3 * E} tensors)",)
    assert "lossy  merge of a LoRA update" in str(plan)


@pytest.mark.parametrize("to", [None, "nemo"])
def test_the_command(base_of: Any, tmp_path: Path, to: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    base, tensors = base_of(torch.bfloat16)
    _, factors = adapter_in(tmp_path / "a")
    out = str(tmp_path / "out")
    more = ["--to", to] if to else []
    assert main(["merge", str(base.path), str(tmp_path / "a"), out, *more, "--verify", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verified"] is True
    assert "lossy: merge of a LoRA update" in captured.err
    found = lazysd.open(out)
    assert found.layout == (to or "hf")
    assert found.adapter is None
    assert found.config == CONFIG
    assert_rounded(found.convert("hf"), expected(tensors, factors, 4.0), torch.bfloat16)


def test_the_command_states_what_files_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = finite_hf()
    write(tmp_path / "base", tensors)
    native = native_lora(E, H, I, R, finite=True)
    write_adapter(tmp_path / "a", in_layout(native, "peft-0.18"), None)
    words = ["merge", str(tmp_path / "base"), str(tmp_path / "a"), str(tmp_path / "out")]
    assert main(words) == 3
    assert "no lora_alpha is known" in capsys.readouterr().err
    assert main([*words, "--lora-alpha", "8", "--num-experts", "4"]) == 3  # the base has three
    assert "missing" in capsys.readouterr().err
    assert main([*words, "--lora-alpha", "8", "--num-experts", "3", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main([*words, "--lora-alpha", "8"]) == 0
    assert_rounded(lazysd.open(tmp_path / "out"), expected(tensors, apart(native), 4.0), torch.float32)


CHILD = """
import sys, torch, lazysd, lazysd.save.run
from lazysd.merging import merge
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
base, adapter, dst, to = sys.argv[1:]
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS"), status("RssAnon")
plan = merge(lazysd.open(base), lazysd.open(adapter), to=to).save(dst, max_memory="64MB", workers=2)
print(status("VmHWM") - before[0], status("RssAnon") - before[1], plan.peak_nbytes, plan.write_nbytes)
"""


@pytest.mark.parametrize("to", ["hf", "nemo"])
def test_memory_stays_within_the_budget(tmp_path: Path, to: str) -> None:
    """200 MB of experts merged in 64 MB, measured in a child process."""
    torch.manual_seed(0)
    tensors = {expert_key(e, w): torch.randn(1024, 1024).bfloat16() for e in range(32) for w in ("gate", "up", "down")}
    write(tmp_path / "base", tensors)
    native = native_lora(32, 1024, 1024, 16, finite=True)
    write_adapter(tmp_path / "a", in_layout(native, "peft-0.19"), adapter_config(r=16))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in ("base", "a", "out")), to],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, anonymous, projected, written = map(int, done.stdout.split())
    assert written > 200_000_000
    assert projected <= 64_000_000
    assert grown < 64_000_000
    assert anonymous < 64_000_000


def test_a_whole_checkpoint_is_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would take the place of the base's without a word."""
    base = write(tmp_path / "base", finite_hf(), config=CONFIG)
    other = write(tmp_path / "other", finite_hf(seed=1), config=CONFIG)
    assert main(["merge", str(base), str(other), str(tmp_path / "out")]) == 3
    assert "other: it holds no LoRA factor (lora_A, lora_B); is it a whole checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
