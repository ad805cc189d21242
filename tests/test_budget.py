"""What commands add to their process stays within --max-memory, down to the smallest that they take.

Processes of their own, in which anonymous memory is measured (see benchmarks/budget.py, which also has the sizes that
take longer: `make budget`). There is no margin: what is projected is more than what is measured.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
budget: Any = importlib.import_module("budget")

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")

# At these scales every command reads, writes or holds several times its smallest budget.
SCALES = {
    "many outputs": 0.12,
    "cast": 0.03,
    "FP8 -> bf16": 0.1,
    "bf16 -> FP8": 0.1,
    "many shards": 0.15,
    "strided": 0.03,
    "merge": 0.1,
    "verify": 0.1,
    "diff": 0.1,
    "stats": 0.1,
    "tiny: stats": 0.13,
    "tiny: stats --json": 0.13,
    "tiny: diff": 0.13,
    "tiny: diff --json": 0.13,
    "tiny: verify": 0.13,
}
AT_THE_DEFAULT = ("FP8 -> bf16",)  # more threads, each with its temporaries


@pytest.mark.slow
def test_commands_keep_to_their_budgets(tmp_path: Path) -> None:
    scenarios = [one for one in budget.SCENARIOS if one.name in SCALES]
    assert len(scenarios) == len(SCALES)
    commands = []
    for number, scenario in enumerate(scenarios):
        scenario.build(tmp_path / str(number), SCALES[scenario.name])
        commands.append([part.format(tmp_path / str(number)) for part in scenario.arguments])
    least = budget.smallest(*commands)
    limits = list(least)
    for scenario, command in zip(scenarios, list(commands), strict=True):
        if scenario.name in AT_THE_DEFAULT:
            commands.append([part.replace("/dst", "/again") for part in command])
            limits.append(budget.DEFAULT)
    ran = [budget.under(command, limit) for command, limit in zip(commands, limits, strict=True)]
    for command, limit, found in zip(ran, limits, budget.measured(*ran), strict=True):
        assert found.code == (1 if command[0] == "diff" else 0), (command, found.said)
        assert found.peak_nbytes <= limit, (command, found)
