"""What every few-bit format keeps to. Inherit the suite, say how a weight of the format is made and what it stands for.

class TestMyFormat(SchemeSuite):
    scheme = MyFormat()
    settings = {"quant_method": "mine"}

    def parts(self, rows, columns, extreme):
        return {"codes": ..., "scale": ...}

    def values(self, parts):
        return parts["codes"].float() * parts["scale"]
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from safetensors.torch import save_file

from ... import dtypes
from ...checkpoint import Checkpoint
from ...errors import LayoutError
from ...opening import open as open_checkpoint
from ...quant import registry
from ...quant.base import Scheme, method_of
from ...quantization import decode_tensors, dequantize, quantize
from ...tensor.lazy import LazyTensor
from ...tensor.wrapping import as_lazy
from ..reading import assert_reads_only

Parts = dict[str, torch.Tensor]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, by which NaNs compare too."""
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8)


class SchemeSuite(ABC):
    """Tests of one scheme, on random codes and scales, against values computed by plain torch."""

    scheme: Scheme
    settings: ClassVar[Mapping[str, Any]] = {}  # what quantization_config says
    shapes: ClassVar[tuple[tuple[int, int], ...]] = ((32, 64), (64, 96))  # of plain weights; odd ones where allowed
    shared: ClassVar[frozenset[str]] = frozenset()  # roles of which a slice reads more than its own elements
    unread: ClassVar[frozenset[str]] = frozenset()  # roles that say nothing of the plain weight: activation scales
    encodes: ClassVar[bool] = False  # whether the scheme encodes; then step() says how well
    stem: ClassVar[str] = "model.layers.0.self_attn.q_proj"

    @abstractmethod
    def parts(self, rows: int, columns: int, extreme: bool) -> Parts:
        """The tensors that stand for a random weight (rows, columns), by their roles.

        Args:
            rows, columns: of the plain weight, one of `shapes`.
            extreme: also NaN codes, scales of zero, infinity and NaN, whatever the format can say; else finite scales
                other than zero.
        """

    @abstractmethod
    def values(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The plain weight (rows, columns) by plain torch, float32 or float64, before it is rounded to a dtype."""

    def step(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The largest error that encoding may make, of each value or one for all."""
        raise NotImplementedError

    def made(self, shape: tuple[int, int], extreme: bool = False, seed: int = 0) -> Parts:
        """The same parts whenever asked."""
        torch.manual_seed(seed)
        return self.parts(*shape, extreme)

    def named(self, parts: Mapping[str, torch.Tensor], form: int = 0) -> Parts:
        """Parts under the names of a form."""
        suffixes = self.scheme.forms[form].suffixes
        return {self.stem + suffixes[role]: tensor for role, tensor in parts.items()}

    def decoded(self, parts: Mapping[str, Any], code: str = "BF16") -> LazyTensor:
        """The plain weight as a lazy tensor."""
        nodes = {role: as_lazy(part) for role, part in parts.items()}
        made: Any = self.scheme.decode(nodes, code, self.settings)
        assert self.scheme.dims(nodes, self.settings) == made.dims
        return made  # type: ignore[no-any-return]

    @pytest.mark.parametrize("code", ["BF16", "F16", "F32"])
    @pytest.mark.parametrize("extreme", [False, True])
    def test_decodes_to_the_values(self, code: str, extreme: bool) -> None:
        for shape in self.shapes:
            parts = self.made(shape, extreme)
            wanted = self.values(parts).float().to(dtypes.to_torch(code))
            found = self.decoded(parts, code).materialize()
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            same = (found.contiguous().view(_int_of(code)) == wanted.contiguous().view(_int_of(code))) | (
                found.isnan() & wanted.isnan()
            )
            assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} values of {shape} differ"

    def test_is_found_by_its_names(self) -> None:
        parts = self.made(self.shapes[0])
        for number, form in enumerate(self.scheme.forms):
            if not set(parts) <= set(form.suffixes):
                continue
            named = self.named(parts, number)
            (weight,) = registry.find({key: as_lazy(part) for key, part in named.items()}, self.settings)
            assert (weight.scheme.name, weight.key) == (self.scheme.name, self.stem + form.weight)
            assert weight.parts == dict(zip(parts, named, strict=True))

    def test_names_what_is_missing(self) -> None:
        named, form = self.named(self.made(self.shapes[0])), self.scheme.forms[0]
        for end in form.required.values():
            left = {key: part for key, part in named.items() if key != self.stem + end}
            with pytest.raises(LayoutError, match=re.escape(self.stem)):
                decode_tensors(left, "BF16", self.settings)

    @profile(suppress_health_check=[HealthCheck.differing_executors], deadline=None, max_examples=25)
    @given(st.data())
    def test_slices_are_what_the_whole_holds(self, data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from(self.shapes))
        parts = self.made(shape, extreme=True)
        node = self.decoded(parts)
        whole = node.materialize()
        where = tuple(_slice(data, size) for size in whole.shape)
        assert torch.equal(bits(node[where].materialize()), bits(whole[where]))
        turned = node.transpose(0, 1)[where[1]].materialize()
        assert torch.equal(bits(turned), bits(whole.t()[where[1]]))

    def test_however_it_is_cut_the_bits_are_the_same(self) -> None:
        parts = self.made(self.shapes[-1], extreme=True)
        node = self.decoded(parts)
        whole = bits(node.materialize())
        for size, dim in product((1, 3, 7, 17), (0, 1)):
            cut = [piece.materialize() for piece in node.split(size, dim=dim)]
            assert torch.equal(bits(torch.cat(cut, dim)), whole), f"cut along axis {dim} by {size}"
        rows, columns = node.dims
        for out in (
            torch.empty(columns, rows, dtype=torch.bfloat16).t(),
            torch.empty(rows, 2 * columns + 1, dtype=torch.bfloat16)[:, 1::2],
        ):
            assert torch.equal(bits(node.materialize(out=out)), whole), f"strides {out.stride()}"

    def test_reads_its_own_codes_and_scales_only(self, tmp_path: Path) -> None:
        parts = self.made(self.shapes[0])
        save_file({key: part.contiguous() for key, part in self.named(parts).items()}, tmp_path / "m.safetensors")
        with open_checkpoint(tmp_path / "m.safetensors", io="pread") as ckpt:
            node = self.decoded({role: ckpt[key] for role, key in zip(parts, self.named(parts), strict=True)})
            for where in self._places(parts):
                part = node[where]
                assert_reads_only(part.materialize, [part], exactly=True)
                self._assert_all_matter(parts, ckpt, where, part.reads())

    def _places(self, parts: Parts) -> Iterator[tuple[slice, slice]]:
        """Single elements that are not zero, the last one among them, and a few elements far apart."""
        values = self.values(parts)
        rows, columns = (int(at) for at in (values.abs().nan_to_num(0, 0, 0) > 0).nonzero()[-1])
        yield slice(rows, rows + 1), slice(columns, columns + 1)
        rows, columns = divmod(int(values.abs().nan_to_num(0, 0, 0).argmax()), values.shape[1])
        yield slice(rows, rows + 1), slice(columns, columns + 1)

    def _assert_all_matter(self, parts: Parts, ckpt: Checkpoint, where: Any, reads: list[tuple[str, int, int]]) -> None:
        """Every stored element that is read has a say in what is made of it."""
        before = bits(self.decoded(parts, "F32")[where].materialize())
        for role, key in zip(parts, self.named(parts), strict=True):
            ((_, base, nbytes),) = ckpt[key].reads()
            itemsize = parts[role].element_size()
            own = [(start - base, n) for _, start, n in reads if base <= start < base + nbytes]
            elements = [at // itemsize for start, n in own for at in range(start, start + n, itemsize)]
            if role in self.unread:
                assert not elements, f"reads {role}, which says nothing of the weight"
            if role in self.shared | self.unread:
                continue
            assert elements, f"reads nothing of {role}"
            for element in elements[:64]:
                others = (self.made(self.shapes[0], seed=seed)[role] for seed in range(1, 40))
                changed = (_with(parts, role, element, other.reshape(-1)[element]) for other in others)
                assert any(
                    not torch.equal(bits(self.decoded(other, "F32")[where].materialize()), before) for other in changed
                ), f"reads element {element} of {role}, which has no say in {where}"

    def test_a_cell_shares_a_scale(self) -> None:
        parts = self.made(self.shapes[-1])
        cell = self._cell(parts)
        if cell is None or self._is_number("scale", parts) or parts["scale"].ndim < 2:
            return
        laid, scale = self._laid(parts), self._laid(parts)["scale"]
        counts = tuple(-(-size // n) for size, n in zip(self.values(parts).shape, cell, strict=True))
        if "zero_point" not in parts:  # which may have larger cells than scales
            assert scale.shape == counts, f"cells of {cell} in {self.shapes[-1]} have {counts} scales"
        before = self.decoded(parts, "F32").materialize()
        own = (1, cell[1]) if "zero_point" in parts else cell
        for row, column in ((0, 0), (scale.shape[0] - 1, scale.shape[1] - 1), (0, scale.shape[1] - 1)):
            at = row * scale.shape[1] + column
            other = next(
                value
                for seed in range(1, 99)
                if not torch.equal(bits(value := self._scale(seed)[at]), bits(scale.reshape(-1)[at]))
            )
            moved = self.decoded(self._laid(_with(laid, "scale", at, other), back=True), "F32").materialize() != before
            inside = torch.zeros_like(moved)
            inside[row * own[0] : (row + 1) * own[0], column * own[1] : (column + 1) * own[1]] = True
            assert not bool((moved & ~inside).any()), f"scale {row, column} reaches beyond its cell"
            assert bool(moved.any()), f"scale {row, column} scales nothing"

    def _is_number(self, role: str, parts: Parts) -> bool:
        return self.scheme.is_number(role, {name: as_lazy(part) for name, part in parts.items()})

    def _scale(self, seed: int) -> torch.Tensor:
        return self._laid(self.made(self.shapes[-1], seed=seed))["scale"].reshape(-1)

    def _laid(self, parts: Mapping[str, torch.Tensor], back: bool = False) -> Parts:
        """Parts with rows and columns where the plain weight has them, or back."""
        made: Any = (self.scheme.unlaid if back else self.scheme.laid)({role: as_lazy(p) for role, p in parts.items()})
        return {role: node.materialize().contiguous() for role, node in made.items()}

    def _cell(self, parts: Parts) -> tuple[int, int] | None:
        return self.scheme.cell({role: as_lazy(part) for role, part in parts.items()}, self.settings)

    def test_weights_cut_at_cells_can_be_put_together(self) -> None:
        first = self.made(self.shapes[0])
        cell = self._cell(first)
        if cell is None or self._is_number("scale", first) or self.values(first).shape[0] % cell[0]:
            return
        kept = {role: part for role, part in first.items() if self._is_number(role, first) or role == "shape"}
        second = self.made(self.shapes[0], seed=1) | kept
        other = self._laid(second)
        both = {k: part if k in kept else torch.cat([part, other[k]]) for k, part in self._laid(first).items()}
        wanted = torch.cat([self.decoded(parts).materialize() for parts in (first, second)])
        assert torch.equal(bits(self.decoded(self._laid(both, back=True)).materialize()), bits(wanted))

    def test_stacked_experts_are_stacked_weights(self) -> None:
        experts = [self.made(self.shapes[0], seed=seed) for seed in range(3)]
        if self._cell(experts[0]) is None:
            return
        stacked = {role: torch.stack([parts[role] for parts in experts]) for role in experts[0]}
        for role in experts[0]:
            if self._is_number(role, experts[0]):
                assert tuple(experts[0][role].shape) == self.scheme.number_dims(self.settings), role
                stacked[role] = stacked[role].reshape(3)
        wanted = torch.stack([self.decoded(parts).materialize() for parts in experts])
        assert torch.equal(bits(self.decoded(stacked).materialize()), bits(wanted))

    def test_turned_parts_are_the_turned_weight(self) -> None:
        for shape in self.shapes:
            parts = self.made(shape, extreme=True)
            if not self.scheme.turns({role: as_lazy(part) for role, part in parts.items()}, self.settings):
                return
            turned = {role: part.t() if part.ndim == 2 else part for role, part in parts.items()}
            assert torch.equal(bits(self.decoded(turned).materialize()), bits(self.decoded(parts).materialize().t()))

    def test_encodes_as_it_decodes_or_says_that_it_does_not(self) -> None:
        torch.manual_seed(0)
        rows, columns = self.shapes[0]
        weight = torch.randn(rows, columns) * torch.logspace(-1, 1, rows).unsqueeze(1)
        weight[:, 0] = 0
        key = self.stem + self.scheme.forms[0].weight
        plain = Checkpoint({key: as_lazy(weight)})
        said = {name: value for name, value in self.settings.items() if name in ("weight_block_size", "scale_fmt")}
        if not self.encodes:
            with pytest.raises(LayoutError, match=f"does not write {self.scheme.name}"):
                quantize(plain, self.scheme.name, ["*"], **said)
            return
        made = quantize(plain, self.scheme.name, ["*"], **said)
        config = (made.config or {})["quantization_config"]
        assert method_of(config) in self.scheme.methods
        (found,) = registry.find(made, config)
        assert (found.key, found.scheme.name) == (key, self.scheme.name)
        parts = {role: made[part].materialize() for role, part in found.parts.items()}
        back = dequantize(made, "f32")[key].materialize()
        assert torch.equal(back, self.values(parts).float())
        assert bool(((back - weight).abs() <= self.step(parts)).all()), "errors exceed the format's"
        assert bool((back[:, 0] == 0).all()), "zero does not stay zero"
        assert any("quantise" in text for text in made.plan().lossy), "the loss is not labelled"


def _with(parts: Parts, role: str, element: int, value: torch.Tensor) -> Parts:
    """The parts with one element of one of them replaced."""
    changed = parts[role].clone().contiguous()
    changed.view(-1)[element] = value
    return {**parts, role: changed}


def _slice(data: st.DataObject, size: int) -> slice:
    """Any slice of an axis, empty ones and steps across blocks among them."""
    start = data.draw(st.integers(0, size))
    return slice(
        start, data.draw(st.integers(start, size)), data.draw(st.sampled_from((1, 2, 3, 7, 8, 16, 31, 32, 64)))
    )


def _int_of(code: str) -> torch.dtype:
    return torch.int32 if code == "F32" else torch.int16
