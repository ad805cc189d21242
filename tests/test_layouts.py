"""Layout tables: what is refused as they are written, how they are told apart, where sizes come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, by_hand, expert_key, noise, random_hf, write

import lazysd
from lazysd.errors import LayoutError, MissingExpertsError
from lazysd.layouts import Layout, Rule, parse_axes, parse_key
from lazysd.layouts import registry as registered

W13 = "{prefix}layers.{layer}.moe.w13"
GATE_UP = "{prefix}layers.{layer}.mlp.experts.{e}.{g:gate_proj|up_proj}.weight"
DOWN = "{prefix}layers.{layer}.mlp.experts.{e}.down_proj.weight"


def lazies(tensors: dict[str, torch.Tensor]) -> lazysd.Checkpoint:
    return lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})


@pytest.fixture
def mine() -> Iterator[Layout]:
    """A user's own layout, registered for one test."""
    rules = [
        Rule(hf=GATE_UP, to=W13, axes="[e g] i h -> e h (g i)"),
        Rule(hf=DOWN, to="{prefix}layers.{layer}.moe.w2", axes="[e] h i -> e i h"),
    ]
    yield lazysd.layouts.register(Layout("mine", family="qwen3_moe", rules=rules, sizes={"e": ("num_experts",)}))
    del registered._LAYOUTS["qwen3_moe", "mine"]


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ("e h", "exactly one '->'"),
        ("e h -> h -> e", "exactly one '->'"),
        ("e h h -> e h", r"repeats \['h'\]"),
        ("e h -> e", r"\['h'\] stand on one side only"),
        ("[e] h -> h [e]", "cannot read"),
        ("e (h -> e h", "cannot read"),
        ("e () -> e", "cannot read"),
        ("e h:2 -> e h", "cannot read"),
    ],
)
def test_axis_patterns_that_are_none(axes: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_axes(axes)


@pytest.mark.parametrize(
    ("template", "reason"),
    [("a.{e", "brace that is no field"), ("a.{e}.{e}", "names a field twice"), ("a.{}.b", "brace that is no field")],
)
def test_key_templates_that_are_none(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_key(template)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ((GATE_UP, W13, "[e q] i h -> e h (q i)"), r"no field for key axes \['q'\]"),
        ((GATE_UP, "layers.{layer}.w13", "[e g] i h -> e h (g i)"), r"\['prefix'\] stand in one key template only"),
        ((DOWN, "{prefix}layers.{layer}.{e}.w2", "[e] h i -> e i h"), r"\['e'\] stand in one key template only"),
    ],
)
def test_rules_that_are_none(rule: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(LayoutError, match=f"bad rule .*{reason}"):
        Rule(*rule)


def test_two_rules_for_the_same_keys() -> None:
    with pytest.raises(LayoutError, match="two rules name the same keys"):
        Layout("x", "f", [Rule(DOWN, W13, "[e] h i -> e i h"), Rule(GATE_UP, W13, "[e g] i h -> e h (g i)")])


def test_a_key_that_two_rules_claim() -> None:
    layout = Layout("x", "f", [Rule("a.{n}", "b", "[n] i -> n i"), Rule("a.{m}", "c", "[m] i -> m i")])
    with pytest.raises(LayoutError, match=r"a\.0: claimed by two rules of layout 'x': 'a\.\{n\}' and 'a\.\{m\}'"):
        lazysd.layouts.convert(lazies({"a.0": torch.zeros(2)}), Layout("hub", "f"), layout, {})


def test_two_sources_for_one_target(mine: Layout) -> None:
    hf = random_hf() | {"model.layers.0.moe.w13": torch.zeros(1)}
    with pytest.raises(LayoutError, match=r"both become model\.layers\.0\.moe\.w13; leave one of them out"):
        lazies(hf).convert("mine", source="hf")


def test_a_user_s_layout_is_like_any_other(mine: Layout, tmp_path: Path) -> None:
    hf = random_hf(experts=3, layers=2)
    ckpt = lazysd.open(write(tmp_path / "hf", hf, shards=2, config={"num_experts": 3}))
    made = ckpt.convert("mine")
    assert made.layout == "mine"
    for layer in (0, 1):
        expected = by_hand(hf, 3, layer)["nemo"]
        name = f"model.layers.{layer}."
        found = made[name + "moe.w13"].materialize().view(torch.int16)
        assert torch.equal(found, expected[name + "mlp.experts.gate_and_up_projs"])
    made.save(tmp_path / "mine")
    saved = lazysd.open(tmp_path / "mine")
    assert saved.layout == "mine"  # detected by its own keys
    assert_same(saved.convert("hf"), hf)
    assert all(back is ckpt[key] for key, back in made.convert("hf").items())
    assert "mine" in lazysd.layouts.names("qwen3_moe")
    with pytest.raises(LayoutError, match="registered already"):
        lazysd.layouts.register(mine)


def test_layouts_side_by_side_are_not_guessed() -> None:
    hf = random_hf()
    both = lazies(hf) | lazies(by_hand(hf, 3)["nemo"])
    with pytest.raises(LayoutError, match=r"several layouts stand side by side \(.*\); say which one it is"):
        both.convert("hf-fused")
    with pytest.raises(LayoutError, match="side by side"):
        _ = both.layout
    assert "mixed layouts" in repr(both)


@pytest.mark.parametrize(
    "config",
    [{"num_experts": 4}, {"num_local_experts": 4}, {"text_config": {"num_experts": 4}}, {"num_experts": 4, "x": 1}],
)
def test_the_number_of_experts_is_config_json_s(config: dict[str, Any]) -> None:
    """With its last expert missing a checkpoint looks whole; the config knows better."""
    hf = random_hf(experts=3)
    assert lazies(hf).convert("nemo")["model.layers.0.mlp.experts.down_projs"].dims == (3, 5, 4)
    with pytest.raises(MissingExpertsError, match=r"needs 8 tensors \(e=4 x g=2\), 2 missing: .*experts\.3\.gate_proj"):
        lazies(hf).convert("nemo", config=config)
    with pytest.raises(LayoutError, match="beyond the e=2"):
        lazies(hf).convert("nemo", config={"num_experts": 2})


@pytest.mark.parametrize("wrong", [True, 0, -3, "4", 4.0, None])
def test_sizes_that_are_none_are_not_taken(wrong: object) -> None:
    assert lazysd.layouts.get("nemo").config_sizes({"num_experts": wrong, "num_local_experts": 7}) == {"e": 7}


def test_numbers_that_are_spelt_otherwise_do_not_match() -> None:
    """layers.00 is another key than layers.0; neither becomes the other."""
    template = parse_key(GATE_UP)
    assert template.match(expert_key(7, "gate")) == {"prefix": "model.", "layer": "0", "e": "7", "g": "gate_proj"}
    for key in (
        "model.layers.00.mlp.experts.0.gate_proj.weight",
        "model.layers.0.mlp.experts.01.gate_proj.weight",
        "model.layers.0.mlp.experts.0.gate_proj.weight2",
        "xlayers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.٣.mlp.experts.0.gate_proj.weight",
        "model.layers.0.mlp.experts.0.gate_proj.weight\n",
    ):
        assert template.match(key) is None, key
    hf = random_hf() | {"model.layers.0.mlp.experts.01.up_proj.weight": noise((5, 4))}
    with pytest.raises(LayoutError, match=r"experts\.01\.up_proj\.weight stands among the keys"):
        lazies(hf).convert("nemo")


def test_every_prefix_is_a_group_of_its_own() -> None:
    mixed = random_hf(prefix="model.") | random_hf(prefix="draft.")
    found = lazies(mixed).convert("nemo")
    assert {key for key in found if "projs" in key} == {
        f"{prefix}.layers.0.mlp.experts.{name}"
        for prefix in ("model", "draft")
        for name in ("gate_and_up_projs", "down_projs")
    }
    assert_same(found.convert("hf"), mixed)


def test_shapes_and_dtypes_of_a_group_agree() -> None:
    hf = random_hf()
    hf[expert_key(1, "up")] = noise((5, 3))
    with pytest.raises(LayoutError, match=r"experts\.1\.up_proj\.weight is BF16\[5, 3\], but .* BF16\[5, 4\]"):
        lazies(hf).convert("nemo")
    hf[expert_key(1, "up")] = noise((5, 4), torch.float16)
    with pytest.raises(LayoutError, match=r"up_proj\.weight is F16\[5, 4\]"):
        lazies(hf).convert("nemo")


def test_unknown_names() -> None:
    with pytest.raises(LayoutError, match=r"no layout 'nemoo'; did you mean 'nemo'\?; there are: hf, hf-fused, nemo"):
        lazysd.layouts.get("nemoo")
    with pytest.raises(LayoutError, match="no layout 'nemo' of family 'none'; there are: none"):
        lazysd.layouts.get("nemo", "none")


def test_a_folded_axis_that_does_not_come_out_even() -> None:
    with pytest.raises(LayoutError, match=r"axis \(g i\) has size 7"):
        lazies({"layers.0.mlp.experts.gate_and_up_projs": torch.zeros(2, 3, 7)}).convert("hf")
    with pytest.raises(LayoutError, match="has 3 tensor axes"):
        lazies({"layers.0.mlp.experts.gate_and_up_projs": torch.zeros(2, 6)}).convert("hf")
