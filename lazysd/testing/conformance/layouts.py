"""What every model family and every dialect keeps to. Inherit a class, name the table, run it with pytest.

class TestMyFamily(FamilySuite):
    family = "my_moe"

A table that comes back is not yet right: compare it once with a file that the other program wrote.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import pytest
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

PLAIN = (torch.bfloat16, torch.float32)
FAULTS = ("missing", "extra", "renamed", "shape", "dtype")
_NUMBER = re.compile(r"(?<=[._])[0-9]+(?=\.)")
_EXPERT = re.compile(r"(experts\.(?:expert_)?)[0-9]+(?=\.)")


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


def spoiled(state_dict: Any, keys: list[str], fault: str, key: str) -> dict[str, torch.Tensor] | None:
    """The state dict with one fault at a key of an expert; None where its form has no such fault.

    Args:
        keys: every key of experts.
        fault: "missing", "extra", "renamed", "shape" or "dtype".
        key: one of `keys`.
    """
    wrong = dict(state_dict)
    alone = sum(_NUMBER.sub("0", other) == _NUMBER.sub("0", key) for other in keys) < 2
    if fault != "shape" and not _EXPERT.search(key):
        return None
    if fault == "missing":
        if alone:
            return None
        del wrong[key]
    elif fault == "extra":
        wrong[_EXPERT.sub(r"\g<1>97", key)] = wrong[key]
    elif fault == "renamed":
        wrong[key.replace("_proj", "_projection") if "_proj" in key else key + "_x"] = wrong.pop(key)
    elif fault == "shape":
        wrong[key] = torch.cat([wrong[key], wrong[key][:1]])
    else:
        if sum(_EXPERT.sub(r"\1", other) == _EXPERT.sub(r"\1", key) for other in keys) < 2:
            return None
        wrong[key] = wrong[key].double()
    return wrong


class FamilySuite:
    """Tests of one family in all its layouts of weights; layouts of LoRA have their own."""

    family: str
    max_examples = 8

    def weights(self) -> list[Layout]:
        """The family's layouts of weights."""
        return [layout for layout in layouts.all_layouts(self.family) if not layout.name.startswith("peft")]

    def test_its_layouts_meet_in_hf(self) -> None:
        assert layouts.get("hf", self.family).rules

    def test_each_layout_says_what_it_is(self) -> None:
        assert all(layout.description for layout in self.weights())

    def test_there_and_back(self) -> None:
        for layout in self.weights():
            there_and_back(layout, self.max_examples)

    def test_every_pair_agrees(self) -> None:
        """From one layout straight to another is what the way over hf gives."""

        @given(checkpoints(self.family, dtypes=PLAIN, max_layers=2, prefixes=("model.",)))
        @settings(max_examples=self.max_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(state_dict: Any) -> None:
            stated = {"family": self.family, "config": state_dict.config}
            made = {one.name: convert(dict(state_dict), one.name, "hf", **stated) for one in self.weights()}
            for one, other in permutations(made, 2):
                assert_same_bytes(convert(dict(made[one]), other, one, **stated), made[other])

        check()

    def test_a_fault_is_refused(self) -> None:
        """An expert's tensor missing, one too many, of another name, shape or dtype: never converted."""
        own = layouts.get("hf", self.family).own_keys
        names = [layout.name for layout in self.weights()]

        @given(checkpoints(self.family, dtypes=PLAIN, max_layers=2, prefixes=("model.",)), st.data())
        @settings(max_examples=3 * self.max_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(state_dict: Any, data: st.DataObject) -> None:
            keys = [key for key in state_dict if any(template.match(key) is not None for template in own)]
            key = data.draw(st.sampled_from(keys))
            fault = data.draw(st.sampled_from(FAULTS if _EXPERT.search(key) else ("shape",)))
            wrong = spoiled(state_dict, keys, fault, key)
            if wrong is None:
                return
            name = data.draw(st.sampled_from(names))
            with pytest.raises(LayoutError) as caught:
                convert(wrong, name, "hf", self.family, state_dict.config)
            assert not re.search(r"exclude|drop\(", str(caught.value)), "no message advises to drop what is needed"

        check()


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
