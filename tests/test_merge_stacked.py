"""LoRA on stacked experts of any family, merged in transformers' own form: PEFT's merge_and_unload is the oracle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from checkpoints import write
from tiny_moe import HIDDEN, NUM_EXPERTS, Saved, build, saved

import lazysd
from lazysd.errors import LayoutError
from lazysd.merging import merge

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's remarks on parameters it was not asked to merge yet

PARAMETERS = ("gate_up_proj", "down_proj", "up_proj")
# module of the experts in memory
FAMILIES = {
    "mixtral": "mlp.experts",
    "gpt_oss": "mlp.experts",
    "deepseek_v3": "mlp.experts",
    "glm4_moe": "mlp.experts",
    "llama4_text": "feed_forward.experts",
    "nemotron_h": "mixer.experts",
    "qwen3_next": "mlp.experts",
    "ernie4_5_vl_moe": "text_moe.experts",
    "longcat_flash": "mlp.experts",
    "aria_text": "mlp.experts",
}


class Case:
    """A base and an adapter in files, and what PEFT makes of both."""

    def __init__(self, model_type: str, targets: tuple[str, ...], modules: tuple[str, ...], sizes: Any):
        self.model: Saved = saved(model_type, **dict(sizes))
        self.folder = Path(mkdtemp())
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(modules), target_parameters=list(targets))
        wrapped = peft.get_peft_model(build(model_type, **dict(sizes)), config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        wrapped.save_pretrained(self.folder / "adapter")
        self.base = write(self.folder / "base", self.model.disk, config=self.model.config)
        self.merged = {key: tensor.clone() for key, tensor in wrapped.merge_and_unload().state_dict().items()}

    @property
    def opened(self) -> tuple[Any, Any]:
        return lazysd.open(self.base), lazysd.open(self.folder / "adapter")


@cache
def case(
    model_type: str, which: tuple[str, ...] = PARAMETERS, modules: tuple[str, ...] = ("q_proj",), **sizes: int
) -> Case:
    module = FAMILIES[model_type]
    names = {key.rsplit(".", 1)[1] for key in saved(model_type, **sizes).fused if f".{module}." in key}
    return Case(model_type, tuple(f"{module}.{name}" for name in which if name in names), modules, tuple(sizes.items()))


def assert_merged(found: Any, given: Case, changes: int) -> None:
    assert set(found) == set(given.model.fused)
    changed = 0
    for key, tensor in found.items():
        there = given.merged[key]
        torch.testing.assert_close(tensor.materialize(), there, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(given.model.fused[key], there)
    assert changed >= changes  # the comparison would see an update that is left out


@pytest.mark.parametrize("model_type", FAMILIES)
def test_as_peft_merges_it(model_type: str) -> None:
    given = case(model_type)
    assert_merged(merge(*given.opened, to="hf-fused"), given, 2)
    there = merge(*given.opened)
    assert there.layout == "hf"
    assert set(there) == set(given.model.disk)
    assert_merged(there.convert("hf-fused"), given, 2)
    assert (
        there.plan().lossy == ("merge of a LoRA update (4 tensors)",)
        or "merge of a LoRA update" in there.plan().lossy[0]
    )


@pytest.mark.parametrize("one", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_one_parameter_alone(model_type: str, one: str) -> None:
    """Its keys have no base_layer., whichever it is: target_parameters says which."""
    given = case(model_type, (one,))
    assert_merged(merge(*given.opened, to="hf-fused"), given, 1)
    base, adapter = given.opened
    said = {**adapter.adapter.values, "target_parameters": None}
    silent = adapter.like(dict(adapter), adapter=adapter.adapter.stating(said))
    with pytest.raises(LayoutError, match="1 of its parameters is wrapped, and target_parameters"):
        merge(base, silent)


def test_a_bias_that_is_wrapped_too() -> None:
    given = case("gpt_oss", ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"), ())
    assert_merged(merge(*given.opened, to="hf-fused"), given, 4)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "llama4_text"])
def test_square_parameters_are_told_by_others_or_by_the_version(model_type: str) -> None:
    """I == H: down_proj alone says nothing of which factor is which."""
    sizes = {"moe_intermediate_size": HIDDEN, "intermediate_size": HIDDEN}
    assert_merged(merge(*case(model_type, **sizes).opened, to="hf-fused"), case(model_type, **sizes), 2)
    alone = case(model_type, ("down_proj",), **sizes)
    if model_type == "mixtral":
        assert_merged(merge(*alone.opened, to="hf-fused"), alone, 1)
    else:
        with pytest.raises(LayoutError, match=r"whether PEFT takes it for transposed depends on the module"):
            merge(*alone.opened)
    base, adapter = alone.opened
    values = {key: value for key, value in adapter.adapter.values.items() if key != "peft_version"}
    undated = adapter.like(dict(adapter), adapter=type(adapter.adapter)(values, exists=True))
    with pytest.raises(LayoutError, match=r"only the version of PEFT says.*config=\{\"peft_version\": \.\.\.\}"):
        merge(base, undated)


def older(adapter: Any) -> Any:
    """The adapter as PEFT up to 0.19.0 stored it: each parameter's factors the other way round, experts in order."""
    made = {}
    for key, tensor in adapter.items():
        values = tensor.materialize()
        if ".experts." in key and ".lora_A." in key:
            _, size = values.shape
            values = values.reshape(NUM_EXPERTS, -1, size).permute(2, 1, 0).reshape(size, -1)
        elif ".experts." in key:
            size, _ = values.shape
            values = values.reshape(size, -1, NUM_EXPERTS).permute(2, 1, 0).reshape(-1, size)
        swapped = key.replace("lora_A", "*").replace("lora_B", "lora_A").replace("*", "lora_B")
        made[swapped if ".experts." in key else key] = lazysd.from_torch(values.contiguous())
    said = {**adapter.adapter.values, "peft_version": "0.18.1"}
    return adapter.like(made, adapter=type(adapter.adapter)(said, exists=True))


@pytest.mark.parametrize("sizes", [{}, {"intermediate_size": HIDDEN}], ids=["I", "I=H"])
def test_the_older_generation(sizes: dict[str, int]) -> None:
    for which in (PARAMETERS, ("down_proj",)):
        given = case("mixtral", which, **sizes)
        base, adapter = given.opened
        assert_merged(merge(base, older(adapter), to="hf-fused"), given, 1)


def test_what_does_not_fit_is_refused() -> None:
    base, adapter = case("mixtral").opened
    keys = [key for key in adapter if ".experts." in key]
    with pytest.raises(LayoutError, match=r"alone is no whole update of it; a LoRA has lora_A and lora_B"):
        merge(base, adapter.drop(keys[0]))
    first = next(key for key in keys if key.endswith("experts.lora_A.weight"))
    for wrong in (torch.randn(3 * NUM_EXPERTS, 4), torch.randn(3 * NUM_EXPERTS - 1, HIDDEN)):
        with pytest.raises(LayoutError, match=r"do not fit|should be the rank times 11 experts"):
            merge(base, adapter | {first: lazysd.from_torch(wrong)})
    with pytest.raises(LayoutError, match=r"should be the rank times 11 experts|do not fit"):
        merge(base, adapter | {first: adapter[first][:-1]})
    with pytest.raises(LayoutError, match="expected a matrix of floating-point numbers"):
        merge(base, adapter | {first: lazysd.from_torch(torch.ones(adapter[first].shape, dtype=torch.int32))})
    for version, wrong in (("0.18.1", adapter), ("0.21.2", older(adapter))):
        dated = wrong.like(dict(wrong), adapter=adapter.adapter.stating({"peft_version": version}))
        with pytest.raises(LayoutError, match=f"peft_version {version} .* says .*, the shape of .* another"):
            merge(base, dated)
