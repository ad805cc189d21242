"""HTML for notebooks: static, escaped, bounded, and read from headers alone."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from math import prod
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.display.html import to_html
from lazysd.stores.base import File

VOID = {"path", "rect"}


class Checker(HTMLParser):
    """Collects text; fails on tags that do not nest, on scripts, handlers and outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link", "object")
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs)
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append(tag)
        self.classes += (dict(attrs).get("class") or "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(shown: object) -> Checker:
    """The page of anything that has one."""
    page = shown._repr_html_() if hasattr(shown, "_repr_html_") else to_html(shown)  # type: ignore[attr-defined]
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def num_calls(work: Callable[[], object]) -> int:
    """Python functions that are called during `work`: the same on every machine."""
    count = 0

    def see(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


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
    assert checker.classes.count("r") < 40  # folded
    assert "qwen3_moe" in text
    assert "model_type" in text  # why


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


def test_inner_stacks_are_drawn(golden: Path) -> None:
    node = lazysd.open(golden / "qwen3_moe_tiny").convert("nemo")["model.layers.0.mlp.experts.gate_and_up_projs"]
    boxes = [part for part in parsed(node).text if "bf16[" in part]
    assert [box.split("  ") for box in boxes[-5:]] == [
        ["reshape of [6, 32, 2, 24]", "bf16[6, 32, 48]"],
        ["permute (0, 3, 1, 2)", "bf16[6, 32, 2, 24]"],
        ["stack of 6", "bf16[6, 2, 24, 32]"],
        ["stack of 2", "bf16[2, 24, 32]", "× 6"],
        ["model-00001-of-00002.safetensors", "bf16[24, 32]", "× 12"],
    ]


def test_remarks_are_shown(golden: Path) -> None:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny").drop("*layers.1.mlp.experts.3.*")
    ckpt = ckpt | {f"model.layers.2{key[14:]}": ckpt[key] for key in ckpt if key.startswith("model.layers.0.")}
    assert "layer 1 lacks mlp.experts.3" in parsed(ckpt).text
    assert "\n  uneven: layer 1 lacks mlp.experts.3" in repr(ckpt)
    assert len(repr(ckpt.like(ckpt, remarks=tuple(f"remark {n} \x1b[1m" + "x" * 9999 for n in range(99))))) < 1500


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
    count = checker.classes.count("r")
    assert 100 < count <= 500
    assert f"… and {2000 - count:,} more tensors" in checker.text


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
        assert len(to_html(shown)) < 30_000
    assert "l.{0-1,4,9,16," in to_html(scattered)


def test_a_long_name_is_cut_in_the_middle_and_whole_in_its_title() -> None:
    key = "model." + "x" * 200 + ".weight"
    page = to_html({key: lazysd.from_torch(torch.zeros(1)), "model.norm": lazysd.from_torch(torch.zeros(1))})
    assert f'title="{key.removeprefix("model.")}"' in page
    shown = next(part for part in parsed({key: lazysd.from_torch(torch.zeros(1))}).text if part.endswith("xxxx.weight"))
    assert len(shown) <= 100


def test_whatever_the_names_a_page_stays_small() -> None:
    weight = lazysd.from_torch(torch.zeros(1))
    names = [f"{chr(97 + n % 26)}{n}{'<&' * 100}{n}" for n in range(3000)]
    assert len(to_html(dict.fromkeys(names, weight))) < 200_000


def sparse(path: Path, layers: int) -> lazysd.Checkpoint:
    """The shape of Qwen3-235B-A22B, of 94 layers and 36,945 tensors, sparse on disk."""
    header, end = {}, 0
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151936, 4096), "model.norm.weight": (4096,)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvo"}
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = (128, 4096)
        for expert in range(128):
            for name, dims in (("gate", (1536, 4096)), ("up", (1536, 4096)), ("down", (4096, 1536))):
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"] = dims
    for key, dims in shapes.items():
        header[key] = {"dtype": "BF16", "shape": dims, "data_offsets": (end, end := end + 2 * prod(dims))}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return lazysd.open(path)


def test_a_large_checkpoint_takes_little_work_and_space(tmp_path: Path) -> None:
    """A bounded number of calls for each tensor, and a page that does not grow with the number of layers."""
    small, large = (sparse(tmp_path / f"{n}.safetensors", n) for n in (9, 94))
    pages: list[str] = []
    calls = [num_calls(lambda ckpt=ckpt: pages.append(ckpt._repr_html_())) for ckpt in (small, large)]  # type: ignore[misc]
    per_tensor = (calls[1] - calls[0]) / (len(large) - len(small))
    assert per_tensor < 100
    assert len(pages[1]) < 12_000
    assert len(pages[1]) - len(pages[0]) < 200
    assert f"{len(large):,} tensors" in pages[1]
    assert "experts.{0-127}" in pages[1]


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
