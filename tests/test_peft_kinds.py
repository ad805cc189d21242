"""Kinds of adapters: what every one promises, DoRA against real PEFT, and the rest refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkpoints import bits, write
from lora_adapters import write_adapter
from torch import nn

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.graph.rewrite import build
from lazysd.merging import merge
from lazysd.peft.config import AdapterConfig
from lazysd.peft.kind import AdapterKind, Unmerged, Wrapped, all_kinds, find_end, kinds_of
from lazysd.peft.kinds.dora import AddMatmulNormed

MODULE = "model.layers.0.self_attn.q_proj"
SAID = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
EXAMPLES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {  # kind -> shapes by end, settings
    "LoRA": ({"lora_A.weight": (2, 5), "lora_B.weight": (6, 2)}, {}),
    "DoRA": ({"lora_A.weight": (2, 5), "lora_B.weight": (6, 2), "lora_magnitude_vector": (6,)}, {"use_dora": True}),
}


# what every kind promises


def assert_conforms(kind: AdapterKind) -> None:
    """A kind is found by its type and its marks, takes what is its own, merges it lazily and refuses misfits."""
    assert kind.name
    assert kind.peft_type.isupper()
    assert kind in kinds_of(AdapterConfig({"peft_type": kind.peft_type}), [])
    for mark in kind.marks:
        assert kind.peft_type in {found.peft_type for found in kinds_of(AdapterConfig(), [f"x{mark}_"])}, mark
    assert kind.summary(AdapterConfig({}))["kind"] == kind.name
    assert isinstance(kind.refuses(AdapterConfig({})), list)
    assert not kind.takes([])
    if isinstance(kind, Unmerged):
        with pytest.raises(LayoutError, match=f"{kind.peft_type}.*merge it with PEFT"):
            kind.merge(Wrapped("x.weight", lazysd.from_torch(torch.zeros(1)), {}, AdapterConfig()))
        return
    shapes, settings = EXAMPLES[kind.name]
    assert kind.takes(list(shapes))
    assert not kind.takes([*shapes, "other"])
    assert not kind.takes(list(shapes)[:1])
    for end in shapes:
        assert find_end(f"{MODULE}.{end}", all_kinds()) == end
    said = AdapterConfig(SAID | settings)
    for code in (torch.float32, torch.bfloat16, torch.float64):
        torch.manual_seed(0)
        weight = torch.randn(6, 5).to(code)
        factors = {end: lazysd.from_torch(torch.randn(dims)) for end, dims in shapes.items()}
        node = kind.merge(Wrapped(f"{MODULE}.weight", lazysd.from_torch(weight), factors, said))
        assert isinstance(node, lazysd.LazyTensor)
        assert (node.dims, node.dtype) == ((6, 5), code)
        whole = node.materialize()
        assert not torch.equal(whole, weight)
        for cut in ((slice(2, 3),), (slice(None), slice(1, None, 2)), (slice(5, 6), slice(4, 5))):
            assert torch.equal(bits(node[cut].materialize()), bits(whole[cut]))
    for end in shapes:
        wrong = factors | {end: lazysd.from_torch(torch.randn(7, 7, 7))}
        with pytest.raises(LayoutError):
            kind.merge(Wrapped(f"{MODULE}.weight", lazysd.from_torch(weight), wrong, said))
        odd = factors | {end: lazysd.from_torch(torch.zeros(shapes[end], dtype=torch.complex64))}
        with pytest.raises(LayoutError):
            kind.merge(Wrapped(f"{MODULE}.weight", lazysd.from_torch(weight), odd, said))
    with pytest.raises(LayoutError, match="no lora_alpha is known"):
        kind.merge(Wrapped(f"{MODULE}.weight", lazysd.from_torch(weight), factors, AdapterConfig(settings)))


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.name)
def test_every_kind(kind: AdapterKind) -> None:
    assert_conforms(kind)


def test_the_check_finds_a_broken_kind() -> None:
    lora = next(kind for kind in all_kinds() if kind.name == "LoRA")

    class Careless(type(lora)):  # type: ignore[misc]
        def merge(self, wrapped: Wrapped) -> Any:
            return wrapped.node

    with pytest.raises(AssertionError):
        assert_conforms(Careless())


def test_names_and_marks_are_unique() -> None:
    kinds = all_kinds()
    assert len({kind.name for kind in kinds}) == len(kinds)
    marks = [(mark, kind.peft_type) for kind in kinds for mark in kind.marks]
    assert len({mark for mark, _ in marks}) == len(marks)


# DoRA


class Tiny(nn.Module):
    def __init__(self, n: int, m: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc = nn.Linear(n, m, bias=False).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m", "r"), [(5, 7, 1), (96, 48, 8), (257, 33, 4), (1000, 3, 2)])
@pytest.mark.parametrize("rslora", [False, True])
def test_dora_equals_peft(tmp_path: Path, dtype: torch.dtype, n: int, m: int, r: int, rslora: bool) -> None:
    torch.manual_seed(n)
    model = Tiny(n, m, dtype)
    write(tmp_path / "base", {"fc.weight": model.fc.weight.detach().clone()})
    config = peft.LoraConfig(r=r, lora_alpha=3, target_modules=["fc"], use_dora=True, use_rslora=rslora)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1 + (1 if "magnitude" in name else 0)
    wrapped.save_pretrained(tmp_path / "a")
    merged = merge(lazysd.open(tmp_path / "base"), lazysd.open(tmp_path / "a"))
    found = merged["fc.weight"].materialize()
    wanted = wrapped.merge_and_unload().fc.weight.detach()
    assert found.dtype == wanted.dtype == dtype
    steps = (bits(found).long() - bits(wanted).long()).abs()
    close = (found - wanted).abs().double() <= 4e-7 * wanted.abs().double().max()
    assert bool((steps <= 1).logical_or(close).all())  # a unit of the last place: PEFT adds in another order
    assert (steps == 0).double().mean() > (0.3 if dtype in (torch.float32, torch.float64) else 0.98)
    plan = merged.plan()
    assert plan.lossy == ("merge of a DoRA update (1 tensors)",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("M", "N"), [(48, 32), (7, 5), (64, 1), (1, 40_001), (130, 96), (300, 3001)])
def test_dora_has_the_same_bits_however_it_is_cut(M: int, N: int, dtype: torch.dtype, monkeypatch: Any) -> None:
    torch.manual_seed(M)
    parts = (torch.randn(M, N).to(dtype), torch.randn(M, 3), torch.randn(3, N), torch.rand(M))
    node = build(AddMatmulNormed(0.7), tuple(map(lazysd.from_torch, parts)))
    whole = node.materialize()
    for cut in (
        (slice(0, 1),),
        (slice(1, 4),),
        (slice(None), slice(0, 1)),
        (slice(M // 2, None), slice(None, None, 2)),
    ):
        assert torch.equal(bits(node[cut].materialize()), bits(whole[cut]))
    assert torch.equal(bits(node.permute(1, 0).materialize()), bits(whole.T))
    from lazysd.move import tiling

    monkeypatch.setattr(tiling, "COMPUTE_TILE_NBYTES", 8 * N)  # two rows or less
    assert torch.equal(bits(node[: min(M, 50)].materialize()), bits(whole[: min(M, 50)]))


def test_dora_that_contradicts_itself(tmp_path: Path) -> None:
    base = lazysd.open(write(tmp_path / "base", {"fc.weight": torch.ones(6, 5)}))
    lora = {"fc.lora_A.weight": torch.ones(2, 5), "fc.lora_B.weight": torch.ones(6, 2)}
    vector = {"fc.lora_magnitude_vector": torch.ones(6)}
    write_adapter(tmp_path / "a", lora | vector, SAID)
    with pytest.raises(LayoutError, match="does not set use_dora"):
        merge(base, lazysd.open(tmp_path / "a"))
    write_adapter(tmp_path / "b", lora, SAID | {"use_dora": True})
    with pytest.raises(LayoutError, match="no lora_magnitude_vector"):
        merge(base, lazysd.open(tmp_path / "b"))
    write_adapter(tmp_path / "c", lora | {"fc.lora_magnitude_vector": torch.ones(5)}, SAID | {"use_dora": True})
    with pytest.raises(LayoutError, match=r"magnitudes \[5\] are not one for each row"):
        merge(base, lazysd.open(tmp_path / "c"))


# the rest

MANY = [
    ("IA3", "IA3", "ia3_l", (6, 1)),
    ("LoHa", "LOHA", "hada_w1_a", (6, 2)),
    ("LoKr", "LOKR", "lokr_w1", (2, 2)),
    ("VeRA", "VERA", "vera_lambda_b", (6,)),
    ("AdaLoRA", "ADALORA", "lora_E", (2, 1)),
]


@pytest.mark.parametrize(("name", "peft_type", "end", "dims"), MANY)
@pytest.mark.parametrize("stated", [True, False])
def test_other_kinds(
    tmp_path: Path, name: str, peft_type: str, end: str, dims: tuple[int, ...], stated: bool, capsys: Any
) -> None:
    base = write(tmp_path / "base", {f"{MODULE}.weight": torch.ones(6, 5)})
    said = {"peft_type": peft_type, "target_modules": ["q_proj"]} if stated else None
    adapter = write_adapter(tmp_path / "a", {f"base_model.model.{MODULE}.{end}": torch.ones(dims)}, said)
    assert main(["merge", str(base), str(adapter), str(tmp_path / "out")]) == 3
    assert f"adapter of kind {name} (peft_type {peft_type})" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["inspect", str(adapter)]) == 0
    assert not stated or f"adapter  {name}\n" in capsys.readouterr().out
    assert main(["diff", str(adapter), str(adapter)]) == 0
    lazysd.open(adapter).save(tmp_path / "copy")
    assert main(["diff", str(adapter), str(tmp_path / "copy")]) == 0
    if stated:
        path = tmp_path / "copy" / "adapter_config.json"
        path.write_text(json.dumps(said | {"target_modules": ["k_proj"]}))  # type: ignore[operator]
        assert main(["diff", str(adapter), str(tmp_path / "copy")]) == 1


def test_a_kind_nobody_knows(tmp_path: Path) -> None:
    base = lazysd.open(write(tmp_path / "base", {"fc.weight": torch.ones(6, 5)}))
    write_adapter(tmp_path / "a", {"fc.new": torch.ones(1)}, {"peft_type": "NEWEST"})
    with pytest.raises(LayoutError, match="kind NEWEST"):
        merge(base, lazysd.open(tmp_path / "a"))


def test_a_type_that_its_keys_deny(tmp_path: Path) -> None:
    base = lazysd.open(write(tmp_path / "base", {"fc.weight": torch.ones(6, 5)}))
    write_adapter(tmp_path / "a", {"fc.ia3_l": torch.ones(6, 1)}, {"peft_type": "LORA"})
    with pytest.raises(LayoutError, match="says peft_type LORA, but the keys are those of IA3"):
        merge(base, lazysd.open(tmp_path / "a"))


def test_inspect_calls_an_adapter_what_it_is(tmp_path: Path, capsys: Any) -> None:
    at = f"base_model.model.{MODULE}."
    lora = {at + "lora_A.weight": torch.ones(2, 5), at + "lora_B.weight": torch.ones(6, 2)}
    for name, more, fields in (
        ("LoRA", {}, {}),
        ("DoRA", {at + "lora_magnitude_vector": torch.ones(6)}, {"use_dora": True}),
    ):
        write_adapter(tmp_path / name, lora | more, SAID | fields)
        assert main(["inspect", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert f"adapter  {name} of rank 2, alpha 4, scale alpha / rank\n" in out
        assert "wraps no experts" in out
        assert "targets q_proj" in out


@pytest.mark.parametrize("command", ["inspect", "plan", "merge"])
def test_hostile_patterns_hang_nothing(tmp_path: Path, command: str, capsys: Any) -> None:
    base = write(tmp_path / "base", {f"{MODULE}.weight": torch.ones(6, 5)})
    at = f"base_model.model.{MODULE}."
    lora = {at + "lora_A.weight": torch.ones(2, 5), at + "lora_B.weight": torch.ones(6, 2)}
    hostile = {"(([a-z0-9_.]+)+)+x": 7}
    adapter = write_adapter(tmp_path / "a", lora, SAID | {"rank_pattern": hostile, "alpha_pattern": hostile})
    words = {"inspect": [], "plan": ["--to", "nemo"], "merge": [str(tmp_path / "out")]}[command]
    assert main([command, *([str(base)] if command == "merge" else []), str(adapter), *words]) in (0, 3)
    if command == "merge":
        assert (tmp_path / "out").exists()
