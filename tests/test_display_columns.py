"""Columns: aligned, flush right, cut in the middle, never wrapped."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import lazysd
from lazysd.display.columns import MAX_PADDED, aligned, hanging, shorten
from lazysd.display.modules import module_tree
from lazysd.display.text import fold, tree
from lazysd.tensor.lazy import LazyTensor


def lazy(*shape: int) -> LazyTensor:
    return lazysd.from_torch(torch.zeros(shape))


@given(st.text("abc.", max_size=60), st.integers(3, 40))
def test_a_cut_name_keeps_both_ends(text: str, width: int) -> None:
    cut = shorten(text, width)
    assert len(cut) <= width
    if len(text) <= width:
        assert cut == text
    else:
        head, tail = cut.split("…")
        assert len(cut) == width
        assert text.startswith(head)
        assert text.endswith(tail)


def test_a_very_long_name_pushes_only_its_own_row() -> None:
    long = "x" * 200
    short, pushed = aligned([("a", "f32[1]", "4 B"), (long, "f32[1]", "4 B")], right=(2,))
    assert short == f"{'a':{MAX_PADDED}}  f32[1]  4 B"
    assert pushed == f"{long}  f32[1]  4 B"


@given(st.integers(40, 120))
def test_no_row_is_wider_than_the_terminal(width: int) -> None:
    keys = ["model.layers.0." + "x" * n + ".weight" for n in (1, 40, 200)]
    lines = tree({key: lazy(2, 3) for key in keys}, width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert all(line.endswith("24 B") for line in lines)


def test_modules_show_what_they_hold() -> None:
    keys = [f"model.layers.{n}.mlp.experts.{e}.up.weight" for n in range(12) for e in range(3)]
    tensors = dict.fromkeys(keys, lazy(5)) | {"model.norm.weight": lazy(1), "head": lazy(2)}
    assert module_tree(fold(tensors)).splitlines() == [
        "model                                        37 tensors          724 B",
        "  layers.{0-11}.mlp.experts.{0-2}.up.weight  36 tensors  f32[5]  720 B",
        "  norm.weight                                  1 tensor  f32[1]    4 B",
        "head                                           1 tensor  f32[2]    8 B",
    ]
    assert module_tree(fold(tensors), depth=1).splitlines() == [
        "model  37 tensors          724 B",
        "head     1 tensor  f32[2]    8 B",
    ]


def test_a_key_of_thousands_of_dots_is_no_recursion() -> None:
    assert module_tree(fold({"a." * 5000 + "b": lazy(1), "a.c": lazy(1)})).count("\n") == 2


def test_sentences_hang_under_their_word() -> None:
    line = "because  model_type 'qwen3_moe' of config.json; config.json states 12 experts, hidden-size 64"
    assert hanging(line, None) == hanging(line, 200) == line
    for width in (40, 60, 80):
        first, *rest = hanging(line, width).splitlines()
        assert max(map(len, (first, *rest))) <= width
        assert all(part.startswith(" " * 9) and part[9] != " " for part in rest)
        assert " ".join((first, *(part.strip() for part in rest))) == line
