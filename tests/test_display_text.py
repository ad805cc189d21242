"""Folded keys: exact, in order, and safe to print."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import lazysd
from lazysd.display.text import fold, ranges, tree
from lazysd.tensor.lazy import LazyTensor


def lazy(*shape: int, dtype: torch.dtype = torch.float32) -> LazyTensor:
    return lazysd.from_torch(torch.zeros(shape, dtype=dtype))


def test_experts_fold_into_one_line() -> None:
    weight = lazy(6, 8, dtype=torch.bfloat16)
    keys = [f"layers.{n}.mlp.experts.{e}.{g}_proj.weight" for n in range(3) for e in range(4) for g in ("gate", "up")]
    shown = tree({"embed": lazy(2), **dict.fromkeys(keys, weight)})
    assert shown.splitlines() == [
        "embed                                            f32[2]              8 B",
        "layers.{0-2}.mlp.experts.{0-3}.gate_proj.weight  bf16[6, 8] x 12  1.2 kB",
        "layers.{0-2}.mlp.experts.{0-3}.up_proj.weight    bf16[6, 8] x 12  1.2 kB",
    ]


def test_a_hole_is_not_hidden() -> None:
    keys = [f"l.{n}.e.{e}" for n in range(3) for e in range(3) if (n, e) != (1, 1)]
    rows = fold(dict.fromkeys(keys, lazy(1)))
    assert [(row.name, row.num_keys) for row in rows] == [("l.{0,2}.e.{0-2}", 6), ("l.1.e.{0,2}", 2)]


def test_shapes_and_dtypes_are_kept_apart() -> None:
    rows = fold({"a.0": lazy(1), "a.1": lazy(2), "a.2": lazy(1, dtype=torch.bfloat16), "a.3": lazy(1)})
    assert [row.name for row in rows] == ["a.{0,3}", "a.1", "a.2"]


def test_odd_numbers_keep_their_spelling() -> None:
    keys = ["a.01", "a.1", "a.²", "a.-1", "a." + "9" * 40]
    assert {row.name for row in fold(dict.fromkeys(keys, lazy(1)))} == set(keys)


def test_a_key_of_many_dots() -> None:
    keys = ["0." * 5000 + str(n) for n in range(2)] + ["a..b"]
    assert {row.name for row in fold(dict.fromkeys(keys, lazy(1)))} == set(keys)


def test_control_characters_are_escaped() -> None:
    assert "\x1b" not in tree({"a\x1b[31m\n.b": lazy(1)})
    assert tree({"a\x1b.b\n": lazy(1)}).startswith("a\\x1b.b\\n ")


def test_rows_are_capped() -> None:
    lines = tree({f"k{letter}": lazy(1) for letter in "abcdef"}, max_rows=2).splitlines()
    assert lines[2:] == ["… and 4 more tensors in 4 rows"]


def test_empty() -> None:
    assert tree({}) == ""


def test_ranges() -> None:
    assert ranges([5, 0, 1, 2, 9, 10]) == "0-2,5,9-10"


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))))
def test_every_key_is_in_exactly_one_row(members: set[tuple[int, int, int]]) -> None:
    keys = [f"a.{x}.b.{y}.{z}" for x, y, z in members]
    rows = fold(dict.fromkeys(keys, lazy(1)))
    assert sorted(key for row in rows for key in row.keys) == sorted(keys)
    for row in rows:
        assert row.num_keys == len(row.keys) == row.nbytes // 4
