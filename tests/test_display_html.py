"""HTML for notebooks: static, escaped, bounded, and read from headers alone."""

from __future__ import annotations

import json
import re
import struct
import time
from html.parser import HTMLParser
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.display.html import to_html
from lazysd.stores.base import File

VOID = {"br"}


class Checker(HTMLParser):
    """Collects text; fails on tags that do not nest, on scripts, handlers and outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link", "object")
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(shown: object) -> Checker:
    checker = Checker()
    checker.feed(to_html(shown))
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr(File, "read", refuse)
    monkeypatch.setattr(File, "view", refuse)


def test_checkpoint(golden: Path, no_reads: None) -> None:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    checker = parsed(ckpt)
    text = " ".join(checker.text)
    assert f"{len(ckpt)} tensors" in text
    assert "experts.{0-5}" in text
    assert "gate_proj" in "".join(checker.text)
    assert checker.tags.count("tr") < 40  # folded
    assert ckpt._repr_html_() == to_html(ckpt)


def test_tensor(golden: Path, no_reads: None) -> None:
    node = next(t for k, t in lazysd.open(golden / "qwen3_moe_tiny").convert("nemo").items() if "gate_and_up" in k)
    checker = parsed(node)
    text = " ".join(checker.text)
    nbytes = sum(size for _, _, size in node.reads())
    assert nbytes == node.nbytes
    assert re.search(r"reads \d+\.\d kB", text)
    assert re.search(r"× (6|12)", text)  # experts are drawn once, with a count
    assert checker.tags.count("rect") <= 6
    assert node._repr_html_() == to_html(node)


def test_names_are_escaped(tmp_path: Path) -> None:
    key = "<script>alert(1)</script>&\"'\x1b[0m.w"
    save_file({key: torch.zeros(2)}, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "<b>.safetensors")
    ckpt = lazysd.open(tmp_path / "<b>.safetensors")
    for shown in (ckpt, ckpt[key]):
        page = to_html(shown)
        parsed(shown)
        assert "<script" not in page
        assert "<b>." not in page
        assert "\x1b" not in page


def test_rows_are_capped() -> None:
    weight = lazysd.from_torch(torch.zeros(1))
    checker = parsed({f"k{n}x": weight for n in range(2000)})
    assert checker.tags.count("tr") == 500
    assert "… and 1500 more tensors" in checker.text


def test_deep_and_wide_graphs_are_capped() -> None:
    node = lazysd.from_torch(torch.zeros(2, 2))
    for n in range(40):
        other = lazysd.from_torch(torch.zeros(n + 1, 2, dtype=node.dtype))
        node = lazysd.concat((node, other))[1:].to(torch.float32 if n % 2 else torch.float64)
    assert parsed(node).tags.count("rect") < 40


def test_scalars_and_empty() -> None:
    parsed(lazysd.from_torch(torch.tensor(1.0)))
    parsed(lazysd.from_torch(torch.zeros(0, 3)))
    parsed({})


def test_one_key_of_many_dots() -> None:
    parsed({"a." * 3000 + "w": lazysd.from_torch(torch.zeros(1))})


def test_layered_graphs_are_capped() -> None:
    """Every level with four kinds of inputs would be thousands of boxes."""
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

    def layer(depth: int, start: int) -> lazysd.LazyTensor:
        if not depth:
            return lazysd.from_torch(torch.zeros(4 + start, 4))
        return lazysd.concat([layer(depth - 1, 4 * start + n).to(kind).to(torch.int8) for n, kind in enumerate(kinds)])

    checker = parsed(layer(4, 0))
    assert 10 < checker.tags.count("rect") <= 41
    assert "… the rest of the graph" in checker.text


def test_names_of_any_length_stay_short() -> None:
    weight = lazysd.from_torch(torch.zeros(1))
    long = {f"{'k' * 100_000}{n}x.w": weight for n in range(20)}
    scattered = {f"l.{n * n}.w": weight for n in range(3000)}  # one row whose list of numbers has no ranges
    for shown in (long, scattered):
        assert len(to_html(shown)) < 12_000
    assert "l.{0-1,4,9,16," in to_html(scattered)


def test_a_large_checkpoint_takes_a_moment_and_little_space(tmp_path: Path) -> None:
    """The shape of Qwen3-235B-A22B, 36,945 tensors, sparse on disk."""
    header, end = {}, 0
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151936, 4096), "model.norm.weight": (4096,)}
    for layer in range(94):
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvo"}
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = (128, 4096)
        for expert in range(128):
            for name, dims in (("gate", (1536, 4096)), ("up", (1536, 4096)), ("down", (4096, 1536))):
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"] = dims
    for key, dims in shapes.items():
        header[key] = {"dtype": "BF16", "shape": dims, "data_offsets": (end, end := end + 2 * prod(dims))}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    ckpt = lazysd.open(tmp_path)
    started = time.perf_counter()
    page = to_html(ckpt)
    assert time.perf_counter() - started < 1
    assert len(page) < 6000
    assert f"{len(shapes)} tensors" in page
    assert "experts.{0-127}" in page


def test_boxes_that_stand_for_several_files_name_no_offset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({f"{name}.{n}": torch.zeros(2) for n in range(3)}, tmp_path / f"{name}.safetensors")
    a, b = (lazysd.open(tmp_path / f"{name}.safetensors") for name in "ab")
    text = parsed(lazysd.stack(list(a.values()))).text
    assert any(re.fullmatch(r"a\.safetensors  f32\[2\]  × 3", part) for part in text)
    assert any(
        re.fullmatch(r"2 files  f32\[2\]  × 6", part) for part in parsed(lazysd.stack([*a.values(), *b.values()])).text
    )
    assert any(re.fullmatch(r"a\.safetensors @ \d+  f32\[2\]", part) for part in parsed(a["a.0"]).text)


def test_singular_and_plural() -> None:
    assert ": 1 tensor, 4 B" in to_html({"w": lazysd.from_torch(torch.zeros(1))})
    assert ": 0 tensors, 0 B" in to_html({})
