"""What every test shares: Hypothesis profiles, no network, the golden files, and which tests this machine can run."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

# huggingface_hub reads this when it is imported, so it is set before any test module is
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# "ci" draws the same examples on every run; time limits and slow draws say something about the machine, not the code
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# tests/peft018 speaks to another peft than the rest; `make test-peft018` has an environment for it
collect_ignore: list[str] = []
try:
    peft_version = metadata.version("peft")
except metadata.PackageNotFoundError:
    peft_version = "absent"
if not peft_version.startswith("0.18."):
    collect_ignore.append("peft018")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of small checkpoints written by the real tools (see its README.md). Never write into it."""
    return ROOT / "tests" / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
