"""Every family x dialect on random sizes with one fault drawn: missing, extra or renamed experts, shapes, dtypes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lazysd
from lazysd.errors import LayoutError
from lazysd.layouts.registry import families, layouts_of
from lazysd.testing import checkpoints

FAULTS = ("missing", "extra", "renamed", "shape", "dtype")
NUMBERS, EXPERT = re.compile(r"(?<=[._])\d+(?=\.)"), re.compile(r"(?<=experts\.)(expert_)?\d+(?=\.)")
PLAIN = (torch.bfloat16, torch.float32)


def experts_of(family: str, state_dict: dict[str, torch.Tensor]) -> list[str]:
    """The keys that the family's rules speak of in the hub's form."""
    own = lazysd.layouts.get("hf", family).own_keys
    return [key for key in state_dict if any(template.match(key) for template in own)]


def spoiled(state_dict: Any, keys: list[str], fault: str, key: str) -> dict[str, torch.Tensor] | None:
    """The state dict with one fault at a key; None where its form has no such fault."""
    wrong = dict(state_dict)
    numbered = re.search(r"experts\.(expert_)?\d+\.", key)
    if fault != "shape" and not numbered:
        return None
    if fault == "missing":
        if sum(NUMBERS.sub("0", other) == NUMBERS.sub("0", key) for other in keys) < 2:
            return None
        del wrong[key]
    elif fault == "extra":
        wrong[re.sub(r"(experts\.(?:expert_)?)\d+\.", r"\g<1>97.", key)] = wrong[key]
    elif fault == "renamed":
        wrong[key.replace("_proj", "_projection") if "_proj" in key else key + "_x"] = wrong.pop(key)
    elif fault == "shape":
        wrong[key] = torch.cat([wrong[key], wrong[key][:1]])
    else:
        if sum(EXPERT.sub("0", other) == EXPERT.sub("0", key) for other in keys) < 2:
            return None
        wrong[key] = wrong[key].double()
    return wrong


@pytest.mark.parametrize("family", sorted(name for name, family in families().items() if family.experts))
def test_a_fault_is_refused(family: str) -> None:
    """By name of the key or the number, in every layout; nothing is made of what is not whole."""
    names = [layout.name for layout in layouts_of(family) if not layout.name.startswith("peft")]
    prefixes = ("model.",) if "torchtitan" in names else ("model.", "", "model.language_model.")
    seen = set()

    @given(checkpoints(family, dtypes=PLAIN, max_layers=2, prefixes=prefixes), st.data())
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    def check(state_dict: Any, data: st.DataObject) -> None:
        keys = experts_of(family, state_dict)
        key = data.draw(st.sampled_from(keys))
        fault = data.draw(st.sampled_from(FAULTS if EXPERT.search(key) else ("shape",)))
        name = data.draw(st.sampled_from(names))
        wrong = spoiled(state_dict, keys, fault, key)
        if wrong is None:
            return
        seen.add(fault)
        with pytest.raises(LayoutError) as caught:
            lazysd.convert(wrong, to=name, source="hf", family=family, config=state_dict.config)
        assert not re.search("exclude|drop\\(", str(caught.value))

    check()
    assert seen  # at least one fault was tried
