"""What every model family and every dialect keeps to. Inherit a class, name the table, run it with pytest.

class TestMyFamily(FamilySuite):
    family = "my_moe"

A table that comes back is not yet right: compare it once with a file that the other program wrote.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ... import layouts
from ...conversion import convert
from ...errors import LayoutError
from ...layouts import Layout
from ..comparing import assert_same_bytes
from ..conversions import assert_round_trip
from ..strategies import PREFIXES, checkpoints, state_dicts
from .faults import Fault, faults, places

PLAIN = (torch.bfloat16, torch.float32)


def prefixes_of(layout: Layout) -> tuple[str, ...]:
    """What keys of the hub may begin with: anything, or what a layout without {prefix} spells out."""
    if any("{prefix}" in rule.hf for rule in layout.rules):
        return PREFIXES
    return ("" if layout.rules[0].hf.startswith("layers.") else "model.",)


def there_and_back(layout: Layout, max_examples: int = 4) -> None:
    """Random state dicts of the family go into the layout and come back with the very bits, or AssertionError."""

    @given(state_dicts(layout.family, dtypes=PLAIN, prefixes=prefixes_of(layout)))
    @settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck))
    def check(state_dict: Any) -> None:
        def into(tensors: dict[str, Any]) -> Any:
            return convert(tensors, layout.name, "hf", layout.family, state_dict.config)

        def back(tensors: dict[str, Any]) -> Any:
            return convert(tensors, "hf", layout.name, layout.family, state_dict.config)

        assert_round_trip(into, back, state_dict)

    check()


class FamilySuite:
    """Tests of one family in all its layouts of weights; layouts of LoRA have their own."""

    family: str
    max_examples = 8

    def weights(self) -> list[Layout]:
        """The family's layouts of weights."""
        return [layout for layout in layouts.all_layouts(self.family) if not layout.name.startswith("peft")]

    def prefixes(self) -> tuple[str, ...]:
        """What keys may begin with in every layout of the family."""
        return tuple(one for one in PREFIXES if all(one in prefixes_of(layout) for layout in self.weights()))

    def test_its_layouts_meet_in_hf(self) -> None:
        assert layouts.get("hf", self.family).rules

    def test_each_layout_says_what_it_is(self) -> None:
        assert all(layout.description for layout in self.weights())

    def test_there_and_back(self) -> None:
        for layout in self.weights():
            there_and_back(layout, self.max_examples)

    def test_every_pair_agrees(self) -> None:
        """From one layout straight to another is what the way over hf gives."""

        @given(checkpoints(self.family, dtypes=PLAIN, max_layers=2, prefixes=self.prefixes()))
        @settings(max_examples=self.max_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(state_dict: Any) -> None:
            stated = {"family": self.family, "config": state_dict.config}
            made = {one.name: convert(dict(state_dict), one.name, "hf", **stated) for one in self.weights()}
            for one, other in permutations(made, 2):
                assert_same_bytes(convert(dict(made[one]), other, one, **stated), made[other])

        check()

    def test_a_fault_is_refused(self) -> None:
        """What is wrong in any layout is never converted to any other, and a part converts to a part; see faults."""

        @given(checkpoints(self.family, dtypes=PLAIN, max_layers=2, prefixes=self.prefixes()), st.data())
        @settings(max_examples=3 * self.max_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(state_dict: Any, data: st.DataObject) -> None:
            source, target, other = (data.draw(st.sampled_from(self.weights())) for _ in range(3))
            stated = {"family": self.family, "config": state_dict.config}
            whole = dict(convert(dict(state_dict), source.name, "hf", **stated))
            elsewhere = convert(dict(state_dict), other.name, "hf", **stated)
            fault = data.draw(st.sampled_from(faults(whole, source, state_dict.config, elsewhere)))
            assert_right(fault, whole, source.name, target.name, stated)

        check()

    def test_experts_alone_are_right_or_refused(self) -> None:
        """Without a config or a family: what the family would give, or an error."""

        @given(checkpoints(self.family, dtypes=PLAIN, max_layers=1, prefixes=self.prefixes()), st.data())
        @settings(max_examples=self.max_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(state_dict: Any, data: st.DataObject) -> None:
            source, target = (data.draw(st.sampled_from(self.weights())).name for _ in range(2))
            hub = {
                place.key: state_dict[place.key] for place in places(state_dict, self.weights()[0], state_dict.config)
            }
            stated = {"family": self.family, "config": state_dict.config}
            alone = dict(convert(hub, source, "hf", **stated))
            try:
                found = convert(dict(alone), target)
            except LayoutError:
                return
            assert_same_bytes(found, convert(alone, target, source, **stated))

        check()


def assert_right(fault: Fault, whole: dict[str, Any], source: str, target: str, stated: Any) -> None:
    """A fault is refused with an error that says where it is, and what may stand alone is converted exactly."""
    what = f"{fault.name}, {source} to {target}"
    try:
        found = convert(dict(fault.tensors), target, source, **stated)
    except LayoutError as error:
        said = str(error)
    else:
        assert not fault.refused, f"{what}: converted to {list(found)}"
        wanted = convert(dict(whole), target, source, **stated)
        assert_same_bytes(found, {key: wanted[key] for key in found})
        assert_same_bytes(convert(found, source, target, **stated), fault.tensors)
        return
    assert fault.refused, f"{what}: {said}"
    assert any(one in said for one in fault.about), f"{what}: the error names none of {fault.about}: {said}"
    assert not re.search(r"exclude|drop\(", said), f"{what}: advice to drop what is needed: {said}"


class DialectSuite:
    """Tests of one dialect, in every family that speaks it."""

    dialect: str
    max_examples = 4

    def spoken(self) -> list[Layout]:
        """The dialect in each family that has it."""
        found = (layouts.registry.get_in(self.dialect, family) for family in layouts.registry.family_names())
        return [layout for layout in found if isinstance(layout, Layout)]

    def test_it_says_what_it_is(self) -> None:
        assert layouts.dialects()[self.dialect].description

    def test_some_family_speaks_it(self) -> None:
        assert self.spoken()

    def test_there_and_back(self) -> None:
        for layout in self.spoken():
            there_and_back(layout, self.max_examples)

    def test_a_family_without_it_says_why(self) -> None:
        for family in layouts.registry.family_names():
            found = layouts.registry.get_in(self.dialect, family)
            assert not isinstance(found, LayoutError) or str(found).partition(": ")[2], family
