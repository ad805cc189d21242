"""A few thousand mutations of every kind of file that decides; `make fuzz` makes as many as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_mutations import KINDS, campaign

COUNTS = {"header": 1500, "index": 1500, "torch": 800, "toml": 1000, "manifest": 200, "dcp": 60}


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, tmp_path: Path) -> None:
    failures: list[str] = []
    counts = campaign(kind, tmp_path / kind, 0, COUNTS.get(kind, 20), failures.append)
    assert not failures, f"{len(failures)} of one kind, the first: {failures[0]}"
    assert counts["refused"]


def test_a_fault_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign itself: an error that is none of lazysd's is one that it tells of."""

    def open_badly(path: object) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("lazysd.open", open_badly)
    failures: list[str] = []
    assert campaign("index", tmp_path, 0, 3, failures.append) == {"accepted": 0, "refused": 0}
    assert len(failures) == 3
    assert "KeyError" in failures[0]


def test_values_that_were_found(tmp_path: Path) -> None:
    """quantization_config that is no table; a version of PEFT of 5,000 digits."""
    import lazysd
    from lazysd.peft.config import generation_of

    config = b'{"model_type": "qwen3_moe", "quantization_config": 1}'
    from checkpoints import random_hf
    from safetensors.torch import save

    ckpt = lazysd.open({"model.safetensors": save(random_hf()), "config.json": config})
    with pytest.raises(lazysd.errors.LayoutError, match="quantization_config: 1, which is no table of settings"):
        ckpt.convert("nemo")
    assert generation_of("9" * 5000 + ".1") is None
    assert generation_of("0.19.1") == "peft-0.19"
