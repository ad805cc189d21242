"""Random graphs of every op against eager torch, whole, by slices, and into strided destinations."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lazysd
from lazysd import dtypes
from lazysd.graph.boxes import box_dims, full_box, row_major
from lazysd.graph.leaves import FileRange
from lazysd.graph.walk import pieces
from lazysd.tensor.lazy import LazyTensor
from lazysd.testing import Drawn, lazy_tensors, slices
from lazysd.testing.comparing import bits_of
from lazysd.testing.graphs import CASTABLE, CODES, leaf, leaves, random_bits
from lazysd.testing.reading import merged

many = settings(max_examples=300)


def file_leaves(node: LazyTensor) -> list[LazyTensor]:
    """Every file leaf below a node, once."""
    found, stack = {}, [node]
    while stack:
        here = stack.pop()
        if isinstance(here.op, FileRange):
            found[id(here)] = here
        stack.extend(here.inputs)
    return list(found.values())


def same_values(found: torch.Tensor, eager: torch.Tensor) -> bool:
    """Equal element by element, signs of zeros included; a NaN equals a NaN.

    torch itself rounds a NaN to another NaN in the vectorised and in the scalar part of one and the same cast, so the
    payload says nothing. float64 holds every value of the other types.
    """
    return torch.equal(found.isnan(), eager.isnan()) and torch.equal(
        found.double().nan_to_num(nan=0.5, posinf=torch.inf, neginf=-torch.inf).view(torch.int64),
        eager.double().contiguous().nan_to_num(nan=0.5, posinf=torch.inf, neginf=-torch.inf).view(torch.int64),
    )


@many
@given(lazy_tensors())
def test_equals_eager_torch(drawn: Drawn) -> None:
    node, bits = drawn
    assert node.dims == tuple(bits.shape)
    found = node.materialize()
    assert found.dtype == dtypes.to_torch(node.code)
    assert torch.equal(bits_of(found), bits.contiguous())


@pytest.mark.parametrize("code", CODES)
def test_equals_eager_torch_pinned(code: str) -> None:
    bits = [random_bits(code, (3, 4), seed) for seed in (1, 2)]
    lazy = [leaf(part, code) for part in bits]
    node = lazysd.concat([x.permute(1, 0) for x in lazy], dim=1)[1:, ::2].reshape(3, 3).transpose(0, 1)
    eager = torch.cat([x.permute(1, 0) for x in bits], dim=1)[1:, ::2].reshape(3, 3).transpose(0, 1)
    assert torch.equal(bits_of(node.materialize()), eager.contiguous())


@many
@given(lazy_tensors(), st.data())
def test_slices_equal_the_whole(drawn: Drawn, data: st.DataObject) -> None:
    node, bits = drawn
    key = data.draw(slices(bits.shape))
    assert torch.equal(bits_of(node[key].materialize()), bits[key].contiguous())


@many
@given(lazy_tensors(), st.data())
def test_every_element_is_asked_for_exactly_once(drawn: Drawn, data: st.DataObject) -> None:
    node, bits = drawn
    written: Counter[int] = Counter()
    for piece in pieces(node, full_box(node.dims), 0, row_major(node.dims)):
        where = torch.zeros(1, dtype=torch.int64)
        for size, stride in zip(box_dims(piece.box), piece.strides, strict=True):
            where = (where[:, None] + torch.arange(size) * stride).reshape(-1)
        written.update((where + piece.offset).tolist())
    assert written == Counter(range(bits.numel()))


@many
@given(lazy_tensors(), st.data())
def test_out_fills_strided_views_and_nothing_else(drawn: Drawn, data: st.DataObject) -> None:
    node, bits = drawn
    order = data.draw(st.permutations(range(bits.dim())))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    dims = [bits.shape[k] for k in order]
    wide = torch.zeros([2 * size + 1 for size in dims], dtype=torch.uint8).to(bits.dtype) + 7
    frame = wide.clone()
    slot = (slice(1, None, 2),) * len(dims)
    target = wide[slot].permute(inverse).view(dtypes.to_torch(node.code))
    assert node.materialize(out=target) is target
    frame[slot] = bits.permute(order)
    assert torch.equal(wide, frame)


@many
@given(lazy_tensors(codes=CASTABLE), st.sampled_from(CASTABLE), st.data())
def test_casts_equal_eager_torch(drawn: Drawn, code: str, data: st.DataObject) -> None:
    node, bits = drawn
    eager = bits.contiguous().view(dtypes.to_torch(node.code)).to(dtypes.to_torch(code))
    found = node.to(dtypes.to_torch(code)).materialize()
    assert found.dtype == eager.dtype
    assert same_values(found, eager)
    order = data.draw(st.permutations(range(bits.dim())))
    assert same_values(node.to(dtypes.to_torch(code)).permute(order).materialize(), eager.permute(order))


@many
@given(lazy_tensors())
def test_reads_are_exact(drawn: Drawn) -> None:
    node, _ = drawn
    files = {id(leaf.op.file): leaf.op.file for leaf in file_leaves(node)}  # type: ignore[attr-defined]
    for number, file in enumerate(files.values()):
        file.path = f"/memory/{number}"
        file.calls.clear()
    promised = node.reads()
    assert not any(file.calls for file in files.values())
    node.materialize()
    assert promised == merged((file.path, *call) for file in files.values() for call in file.calls)


@given(leaves("BF16", (4, 6, 2)), st.permutations(range(3)))
def test_views_there_and_back_are_the_very_leaf(drawn: Drawn, order: list[int]) -> None:
    node = drawn.node
    inverse = sorted(range(3), key=order.__getitem__)
    assert node.permute(*order).permute(*inverse) is node
    assert node.reshape(8, 6).reshape(2, 24).reshape(4, 6, 2) is node
    for dim in range(3):
        assert lazysd.stack(node.unbind(dim), dim) is node
        assert lazysd.concat(node.split(1, dim), dim) is node
        assert all(a is b for a, b in zip(lazysd.stack([node, node], dim).unbind(dim), [node, node], strict=True))
