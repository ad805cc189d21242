"""The adapter as NeMo's own training code uses it: its Checkpointer and PEFT addon, by one, two and four ranks."""

from __future__ import annotations

import json
from pathlib import Path

import nemo_models
import pytest
import torch
from gloo import run_ranks
from nemo_models import LAYERS, OURS, THEIRS

import lazysd

pytest.importorskip("nemo_automodel")
pytestmark = pytest.mark.dist
SCENARIOS = ["save_and_resume", "load_a_base_model", "save_and_load_peft"]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_nemos_checkpointer(tmp_path: Path, world_size: int) -> None:
    done = run_ranks("nemo_models", SCENARIOS, world_size, tmp_path)
    assert [report for reports in done.values() for report in reports if report] == []
    steps = tmp_path / "save_and_resume"
    ours, theirs = (lazysd.open(steps / str(number) / "step" / "model") for number in (0, 2))
    assert ours.layout == "hf"
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[key].materialize(), theirs[key].materialize()) for key in theirs)
    if world_size == 1:
        check_adapters(tmp_path / "save_and_load_peft")


def check_adapters(folder: Path) -> None:
    """Both adapters' files are the same, and real PEFT loads every LoRA parameter of both."""
    from peft import PeftModel
    from transformers import Qwen3MoeForCausalLM

    found = {}
    for side, number in ((OURS, 0), (THEIRS, 2)):
        place = folder / str(number) / "step" / "model"
        said = json.loads((place / "adapter_config.json").read_text())
        assert sorted(said["target_parameters"]) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
        loaded = PeftModel.from_pretrained(Qwen3MoeForCausalLM(nemo_models.hf_config()), str(place))
        weights = {key: value for key, value in loaded.named_parameters() if "lora_" in key}
        assert len(weights) == LAYERS * 2 * (2 + 2)  # A and B of q_proj, v_proj, gate_up_proj, down_proj
        stored = lazysd.open(place)
        assert len(stored) == len(weights)
        for key, value in weights.items():
            assert torch.equal(value, stored[key.replace(".default.", ".")].materialize()), key
        found[side] = (said, {key: node.materialize() for key, node in stored.items()})
    assert found[OURS][0] == found[THEIRS][0]
    assert sorted(found[OURS][1]) == sorted(found[THEIRS][1])
    assert all(torch.equal(found[OURS][1][key], value) for key, value in found[THEIRS][1].items())
