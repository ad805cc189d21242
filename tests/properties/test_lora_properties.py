"""Random LoRA adapters: native -> any layouts -> native is the identity on bytes; slices are slices of the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from checkpoints import assert_same, bits
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_adapters import adapter_config, in_layout, native_lora, write_adapter

import lazysd

LAYOUTS = ("nemo", "peft-0.18", "peft-0.19", "peft-per-expert")
NAMES = {"gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}
quick = settings(max_examples=60)

# (experts, hidden, intermediate, rank of gate and up, rank of down): drawn freely, or square in one way or another
shapes = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 6).map(lambda n: (2, n, n, 3, 3)),  # I == H
    st.integers(1, 6).map(lambda n: (3, 2 * n, n, 2, 2)),  # 2I == H
    st.integers(1, 4).map(lambda n: (2, 2 * n, 2 * n, n, n)),  # rE == H == I
)
wrapped = st.sampled_from([("gate_up", "down"), ("gate_up",), ("down",)])


@contextmanager
def adapter(shape: tuple[int, ...], layout: str, which: tuple[str, ...], layers: int) -> Iterator[Any]:
    """(folder, native tensors) of a random adapter on disk, in any layout."""
    E, H, I, r, down = shape  # noqa: E741
    native = native_lora(E, H, I, r, r_down=down, wrapped=which, layers=range(layers))
    said = {"r": r, "target_parameters": [NAMES[name] for name in which]}
    said |= {"rank_pattern": {r".*down_proj": down}} if down != r else {}
    if layout == "peft-per-expert":
        said["target_parameters"] = None
    with tempfile.TemporaryDirectory() as folder:
        yield write_adapter(Path(folder) / "a", in_layout(native, layout), adapter_config(layout, **said)), native


def go_around(shape: Any, which: Any, layers: int, way: list[str]) -> None:
    with adapter(shape, "nemo", which, layers) as (folder, native):
        ckpt = lazysd.open(folder)
        for layout in way:
            ckpt = ckpt.convert(layout)  # its layout is known, so that square shapes are no riddle
            assert_same(ckpt, in_layout(native, layout))
        assert_same(ckpt.convert("nemo"), native)


@given(shapes, wrapped, st.integers(1, 3), st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=5))
@quick
def test_any_way_around_ends_where_it_began(shape: Any, which: Any, layers: int, way: list[str]) -> None:
    go_around(shape, which, layers, way)


def save_twice(shape: Any, which: Any, layers: int, source: str, target: str) -> None:
    """What a save writes says enough that the next open needs nothing stated: version, targets, ranks."""
    with adapter(shape, source, which, layers) as (folder, native):
        lazysd.open(folder).convert(target).save(folder.parent / "b")
        found = lazysd.open(folder.parent / "b")
        assert found.layout == target
        assert_same(found, in_layout(native, target))
        found.convert(source).save(folder.parent / "c")
        assert_same(lazysd.open(folder.parent / "c"), in_layout(native, source))


@given(
    shapes, wrapped, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(["mmap", "pread"]), st.data()
)
@quick
def test_slices_are_slices_of_the_whole(
    shape: Any, which: Any, source: str, target: str, io: str, data: st.DataObject
) -> None:
    with adapter(shape, source, which, 1) as (folder, native):
        made = lazysd.open(folder, io=io).convert(target)
        for key, whole in in_layout(native, target).items():
            cut = tuple(
                slice(data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n)), data.draw(st.integers(1, 3)))
                for n in whole.shape
            )
            part = made[key][cut]
            wanted = whole[cut].contiguous()
            assert part.shape == wanted.shape
            assert torch.equal(bits(part.materialize()), bits(wanted))


@given(shapes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_one_flipped_bit_never_gets_lost(shape: Any, source: str, target: str, where: int) -> None:
    """Every bit of a source stands in the result: flip one, and the result differs, or the copies no longer agree."""
    with adapter(shape, source, ("gate_up", "down"), 1) as (folder, native):
        tensors = in_layout(native, source)
        key = sorted(tensors)[where % len(tensors)]
        flat = bits(tensors[key]).clone().view(-1)
        flat[where % flat.numel()] ^= 1 << (where % 31)
        changed = tensors | {key: flat.view(tensors[key].shape).view(tensors[key].dtype)}
        lazy = lazysd.Checkpoint({k: lazysd.from_torch(t) for k, t in changed.items()})
        made = lazy.convert(target, source=source, config=lazysd.open(folder).adapter.values)  # type: ignore[union-attr]
        try:
            differs = any(
                not torch.equal(bits(made[k].materialize()), bits(t)) for k, t in in_layout(native, target).items()
            )
        except lazysd.errors.LayoutError:
            assert source == "peft-per-expert"
            assert "lora_A" in key
            differs = True
        assert differs


def test_pinned() -> None:
    """Examples of both, square in every way."""
    go_around((2, 4, 4, 2, 2), ("down",), 2, ["peft-0.18", "peft-0.19", "peft-per-expert", "peft-0.19", "nemo"])
    for source, target in product(LAYOUTS, repeat=2):
        save_twice((2, 4, 4, 2, 3), ("gate_up", "down"), 1, source, target)
