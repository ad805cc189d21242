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
    "many outputs": 0.1,
    "cast": 0.08,
    "transposed": 0.3,
    "FP8 -> bf16": 0.3,
    "MXFP4 -> bf16": 0.4,
    "bf16 -> FP8": 0.3,
    "many shards": 0.25,
    "strided": 0.08,
    "merge": 0.3,
    "verify": 0.2,
    "verify against": 0.2,
    "diff": 0.2,
    "stats": 0.2,
}


@pytest.mark.slow
def test_the_smallest_budget_and_the_default_hold(tmp_path: Path) -> None:
    scenarios = [one for one in budget.SCENARIOS if one.name in SCALES]
    assert len(scenarios) == len(SCALES)
    commands = []
    for number, scenario in enumerate(scenarios):
        scenario.build(tmp_path / str(number), SCALES[scenario.name])
        commands.append([part.format(tmp_path / str(number)) for part in scenario.arguments])
    least = budget.smallest(*commands)
    again = [[part.replace("/dst", "/again") for part in command] for command in commands]
    limits = [*least, *(budget.DEFAULT for _ in commands)]
    ran = [budget.under(command, limit) for command, limit in zip([*commands, *again], limits, strict=True)]
    for command, limit, found in zip(ran, limits, budget.measured(*ran), strict=True):
        assert found.code == (1 if command[0] == "diff" else 0), (command, found.said)
        assert found.peak_nbytes <= limit, (command, found)
