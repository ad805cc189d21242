"""Tables of users' own, and how tables are drawn."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, bits, noise, random_hf, write

import lazysd
from lazysd.cli.main import main
from lazysd.errors import LayoutError
from lazysd.layouts import Dialect, Experts, Family, Layout, Speech, drawing, registry

TEN_LINES = """\
[[family]]
name = "my_moe"
model_types = ["my_moe"]
[family.experts]
at = "{prefix}layers.{layer}.ffn.experts."
gate = "w1"
up = "w3"
down = "w2"
[family.speaks]
nemo = true
"""
LAYOUT = """\
# a kernel's form
[[layout]]
name = "kernel"
family = "qwen3_moe"
sizes = { e = ["num_experts"] }

[[layout.rule]]
hf = "{prefix}layers.{layer}.mlp.experts.{e}.{g:gate_proj|up_proj}.weight"
to = "{prefix}layers.{layer}.moe.w13"
axes = "[e g] i h -> e (i g) h"

[[layout.rule]]
hf = "{prefix}layers.{layer}.mlp.experts.{e}.down_proj.weight"
to = "{prefix}layers.{layer}.moe.w2"
axes = "[e] h i -> e h i"
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.families()
    for name in ("_LAYOUTS", "_FAMILIES", "_DIALECTS", "_DERIVED"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def saved(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def my_moe(experts: int = 11) -> dict[str, torch.Tensor]:
    at = "model.layers.10.ffn.experts."
    return {
        f"{at}{e}.{word}.weight": noise(dims, seed=10 * e + n)
        for e in range(experts)
        for n, (word, dims) in enumerate((("w1", (5, 4)), ("w3", (5, 4)), ("w2", (4, 5))))
    }


def test_a_new_family_in_ten_lines(tmp_path: Path) -> None:
    assert len(TEN_LINES.splitlines()) == 10
    (made,) = lazysd.layouts.load(saved(tmp_path, TEN_LINES))
    assert isinstance(made, Family)
    state = my_moe()
    config = {"model_type": "my_moe", "n_routed_experts": 11, "hidden_size": 4, "moe_intermediate_size": 5}
    ckpt = lazysd.open(write(tmp_path / "m", state, config=config))
    assert (ckpt.family, ckpt.layout) == ("my_moe", "hf")
    nemo = ckpt.convert("nemo")
    at = "model.layers.10.ffn.experts."
    expected = torch.stack(
        [torch.cat([bits(state[f"{at}{e}.{w}.weight"]).T for w in ("w1", "w3")], dim=1) for e in range(11)]
    )
    assert torch.equal(bits(nemo[at + "gate_and_up_projs"].materialize()), expected)
    for to in ("nemo", "hf-fused", "vllm"):
        assert all(ckpt.convert(to).convert("hf")[key] is ckpt[key] for key in ckpt)


def test_what_a_table_leaves_apart_stays_in_every_layout(tmp_path: Path) -> None:
    """Also where the layout is stated: a prefix that stays proves no other layout."""
    apart = TEN_LINES.replace("[family.experts]", 'apart = ["mtp."]\n[family.experts]')
    lazysd.layouts.load(saved(tmp_path, apart))
    beside = {"mtp.norm.weight": noise((4,))} | {f"mtp.0.{key}": tensor for key, tensor in my_moe().items()}
    state = beside | my_moe()
    for source, to in product(("hf", "hf-fused", "nemo"), repeat=2):
        made = lazysd.convert(lazysd.convert(state, source, "hf", "my_moe"), to, source, "my_moe")
        assert_same({key: made[key] for key in beside}, beside)
        assert_same(lazysd.convert(made, "hf", to, "my_moe"), state)


def test_a_layout_from_toml_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random_hf(experts=12)
    config = {"model_type": "qwen3_moe", "num_experts": 12}
    source = write(tmp_path / "m", state, config=config)
    table = saved(tmp_path, LAYOUT)
    common = ["--layouts", str(table), "--no-progress", "-q"]
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "kernel", "--verify", *common]) == 0
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "back"), "--to", "hf", *common]) == 0
    assert_same(lazysd.open(tmp_path / "back"), state)
    capsys.readouterr()
    assert main(["layouts", "qwen3_moe", "--to", "kernel", "--layouts", str(table), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rules"]
    assert rows[0]["to_shape"] == "(E, 2I, H)"


def test_a_dialect_serves_every_family(tmp_path: Path) -> None:
    text = """
[[dialect]]
name = "kernel"
description = "one tensor for gate, one for up"
[dialect.form]
gate_up = ["{g:w_gate|w_up}", "[g] e i h"]
down = ["w_down", "e h i"]
gate_up_bias = ["{g:b_gate|b_up}", "[g] e i"]
down_bias = ["b_down", "e h"]
"""
    (made,) = lazysd.layouts.load(saved(tmp_path, text))
    assert isinstance(made, Dialect)
    for family in ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"):
        assert "kernel" in lazysd.layouts.names(family)
    found = lazysd.convert(random_hf(), "kernel", family="qwen3_moe")
    assert found["model.layers.0.mlp.experts.w_up"].shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (LAYOUT.replace("(i g) h", "(i g)"), 10, r"\['h'\] stand on one side only"),
        (LAYOUT.replace("{g:gate_proj|up_proj}", "{g:gate_proj|gate_proj}"), 8, "words of g should differ"),
        (LAYOUT.replace('to = "{prefix}layers.{layer}.moe.w2"\n', ""), 12, "to is missing"),
        (LAYOUT.replace('name = "kernel"', "name = 3"), 3, "name should be text"),
        (LAYOUT.replace("axes =", "axis =", 1), 10, "'axis' means nothing here; known are hf, to, axes"),
        (LAYOUT.replace('family = "qwen3_moe"\n', ""), 2, "family is missing"),
        (LAYOUT.replace("w2", "w13"), 2, "two rules name the same keys"),
        (TEN_LINES.replace('up = "w3"', "up = 3"), 7, "up should be text"),
        (TEN_LINES.replace("nemo = true", "nemo = 3"), 10, "nemo should be a table"),
        (TEN_LINES.replace("{prefix}layers", "{prefix}{1}layers"), 4, "no name for a field"),
        (TEN_LINES.replace('down = "w2"', 'disk = "fuzed"'), 8, "a form is one of per-expert, fused"),
        (TEN_LINES.replace('model_types = ["my_moe"]\n', ""), 1, "model_types is missing"),
        ("[[famly]]\n", 1, "'famly' means nothing here; known are family, dialect, layout"),
        ("", 1, r"describes no \[\[family\]\]"),
        ("[[layout]\n", 1, "no TOML: .*line 1"),
        ('[[layout]]\nname = "x"\nfamily = "y"\n', 1, r"needs a \[\[layout.rule\]\]"),
    ],
)
def test_errors_point_at_the_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    where = rf"mine\.toml(, line {line})?: .*" if "no TOML" in reason else rf"mine\.toml, line {line}: .*"
    with pytest.raises(LayoutError, match=where + reason):
        lazysd.layouts.load(saved(tmp_path, text))
    assert "kernel" not in lazysd.layouts.names()
    assert "my_moe" not in registry.family_names()


def test_a_table_may_be_read_again(tmp_path: Path) -> None:
    path = saved(tmp_path, TEN_LINES)
    lazysd.layouts.load(path)
    with pytest.raises(LayoutError, match="two tables are named 'my_moe'"):
        lazysd.layouts.load(path)
    lazysd.layouts.load(saved(tmp_path, TEN_LINES.replace('"w3"', '"v1"')), overwrite=True)
    assert "v1" in lazysd.layouts.get("hf", "my_moe").rules[0].to
    with pytest.raises(LayoutError, match="model_type 'my_moe' is claimed by two families, my_moe and other"):
        lazysd.layouts.load(saved(tmp_path, TEN_LINES.replace('name = "my_moe"', 'name = "other"')))


def test_a_python_file_and_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lazysd.layouts import Experts, Family\n"
    code += "FAMILY = Family('py_moe', ('py_moe',), Experts('{prefix}l.{layer}.x.'))\n"
    lazysd.layouts.load(saved(tmp_path, code, "mine.py"))
    assert lazysd.layouts.get("hf-fused", "py_moe").rules[0].to == "{prefix}l.{layer}.x.gate_up_proj"

    class Point:
        def load(self) -> Any:
            return [Family("ep_moe", ("ep_moe",), Experts(), speaks={"nemo": Speech()})]

    monkeypatch.setattr(registry, "_ASKED", [])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()] if group == "lazysd.layouts" else [])
    assert registry.family_of("ep_moe") == "ep_moe"


def test_the_command_lists_and_draws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layouts"]) == 0
    out = capsys.readouterr().out
    assert "qwen3_moe" in out
    assert "mixtral" in out
    assert "hf-fused" in out
    assert main(["layouts", "mixtral"]) == 0
    out = capsys.readouterr().out
    assert "no: family 'mixtral' has no layout 'nemo'" in out
    assert main(["layouts", "qwen3_moe", "--to", "nemo"]) == 0
    out = capsys.readouterr().out
    for part in ("{prefix}layers.{layer}.mlp.experts.{e}.down_proj.weight", "(I, H)", "[e] h i -> e i h", "(E, H, 2I)"):
        assert part in out
    assert main(["layouts", "nemo"]) == 0
    assert "qwen3_moe: hf -> nemo" in capsys.readouterr().out
    assert main(["layouts", "mixtrol", "--to", "hf-fused"]) == 3
    assert "nearest families: mixtral" in capsys.readouterr().err
    assert main(["layouts", "mixtral", "--to", "nemo"]) == 3
    assert main(["layouts", "--to", "nemo"]) == 3


def test_a_stated_family_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "m", random_hf(), config={"model_type": "brand_new", "num_experts": 3})
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "nemo"]) == 3
    assert "'brand_new'" in capsys.readouterr().err
    assert (
        main(["convert", str(source), str(tmp_path / "out"), "--to", "nemo", "--family", "qwen3_moe", "--verify"]) == 0
    )
    assert lazysd.open(tmp_path / "out")["model.layers.0.mlp.experts.down_projs"].dims == (3, 5, 4)


def test_rows_of_every_pair_can_be_drawn() -> None:
    """Each row's two sides name the same axes, as the rules that it was joined from do."""
    for family in registry.family_names():
        hf = registry.get("hf", family)
        for layout in registry.layouts_of(family):
            for row in drawing.rows(hf, layout):
                left, right = row.pattern.split(" -> ")
                assert row.shape.startswith("(")
                assert left
                assert right
            assert isinstance(layout, Layout)


def test_the_examples_of_the_document_work(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "layouts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert TEN_LINES in blocks
    for block in blocks:
        assert lazysd.layouts.load(saved(tmp_path, block))
    assert {"kernel", "kernel2"} <= set(lazysd.layouts.names("qwen3_moe"))
