"""What stands in a terminal or a notebook as the last value: a few lines, and HTML of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lazysd
from lazysd.layouts import Layout, Rule

MAX_LINES, MAX_CHARACTERS, MAX_HTML = 14, 3000, 250_000


def many(count: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """As many rows as tensors: names that do not fold, with what HTML and terminals would act on."""
    one = torch.arange(4, dtype=dtype)
    return {f"k{n}x<b>&\x1b[1m{'y' * (n % 300)}.w{n}z": one + n for n in range(count)}


def shown_of(count: int) -> dict[str, Any]:
    tensors = many(count)
    ckpt = lazysd.Checkpoint({key: lazysd.from_torch(tensor) for key, tensor in tensors.items()})
    ckpt = ckpt.like(ckpt, remarks=tuple(f"remark {n} " + "z" * 200 for n in range(count)))
    plan = ckpt.plan(max_shard_size=1)
    rules = [Rule(f"a{n}{'<' * 9}.{{layer}}.{{e}}", f"b{n}{'<' * 9}.{{layer}}", "[e] h -> e h") for n in range(count)]
    comparison = lazysd.compare(tensors, {key: tensor + 1 for key, tensor in tensors.items()})
    stats = ckpt.stats()
    return {
        "checkpoint": ckpt,
        "plan": plan,
        "shard": plan.shards[0],
        "job": next(plan.jobs_of(0)),
        "layout": Layout("mine", "fam<b>", rules, description="d" * 300, source="s" * 999),
        "comparison": comparison,
        "moved": comparison.rows()[0],
        "stats of all": stats,
        "stats": next(iter(stats.values())),
        "tensor": lazysd.stack(list(ckpt.values())),
    }


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return shown_of(600)


def test_reprs_have_a_few_lines(values: dict[str, Any]) -> None:
    for name, value in values.items():
        text = repr(value)
        assert len(text) < MAX_CHARACTERS, name
        assert len(text.splitlines()) <= MAX_LINES, name
        assert text.replace("\n", "").isprintable(), name


def test_html_is_bounded_and_escaped(values: dict[str, Any]) -> None:
    with_html = {name: value._repr_html_() for name, value in values.items() if hasattr(value, "_repr_html_")}
    assert set(with_html) >= {"checkpoint", "plan", "layout", "comparison", "stats of all", "stats", "tensor"}
    for name, page in with_html.items():
        assert len(page) < MAX_HTML, name
        assert "\x1b" not in page, name
        assert "x<b>" not in page, name
        assert "<<" not in page, name


def test_html_does_not_grow(values: dict[str, Any]) -> None:
    more = shown_of(900)
    for name in ("plan", "layout", "comparison", "stats of all", "checkpoint"):
        assert abs(len(more[name]._repr_html_()) - len(values[name]._repr_html_())) < 4000, name


def test_a_plan_says_what_it_does(golden: Path) -> None:
    plan = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo").plan()
    assert repr(plan).splitlines()[:3] == [
        "Plan",
        "  read   76.9 kB of 57 tensors",
        f"  write  {plan.write_nbytes / 1000:.1f} kB: 25 tensors in 1 file",
    ]
    assert [line.strip() for line in repr(plan).splitlines()[1:]] == str(plan).splitlines()
    assert repr(plan.shards[0]).startswith("Shard('model.safetensors', 25 tensors, ")


def test_a_layout_says_its_rules() -> None:
    shown = repr(lazysd.layouts.get("nemo", "qwen3_moe"))
    assert shown.startswith("Layout 'nemo' of qwen3_moe, 6 rules: NeMo Automodel")
    assert "    -> {prefix}layers.{layer}.mlp.experts.down_projs  [e] h i -> e i h" in shown
    assert shown.endswith("… and 2 more rules")


def test_rows_of_a_comparison_show_themselves(golden: Path) -> None:
    found = lazysd.compare(
        {"l.0.e.0": torch.ones(4), "l.0.e.1": torch.ones(4)}, {"l.0.e.0": torch.ones(4) * 3, "l.0.e.1": torch.ones(4)}
    )
    assert repr(found.rows()) == "[Moved('l.0.e.{0-1}', 2 tensors, relative 1.41, max 2)]"
    assert repr(found) == "Comparison(1 tensor equal, 1 differs in values)"
