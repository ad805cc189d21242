"""Values narrower than a byte: moved, sliced, compared, shown as the bytes that hold them, and never computed with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd import dtypes
from lazysd.cli.main import main
from lazysd.errors import UnsupportedCheckpointError
from lazysd.testing import assert_same_bytes

FP4 = torch.arange(48, dtype=torch.uint8).reshape(2, 4, 6).view(torch.float4_e2m1fn_x2)


def with_header(path: Path, code: str, shape: list[int], data: bytes) -> Path:
    text = json.dumps({"w": {"dtype": code, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(path: Path) -> dict[str, object]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["w"]


def test_fp4_travels_as_torch_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": FP4, "x": torch.ones(2)}, tmp_path / "m.safetensors")
    for io in ("mmap", "pread"):
        node = lazysd.open(tmp_path / "m.safetensors", io=io)["w"]
        assert (node.dtype, tuple(node.shape), node.nbytes) == (torch.float4_e2m1fn_x2, (2, 4, 6), 48)
        assert torch.equal(node.materialize().view(torch.uint8), FP4.view(torch.uint8))
        part = node[1, ::2].permute(1, 0).materialize()
        assert torch.equal(part.view(torch.uint8), FP4.view(torch.uint8)[1, ::2].t())
        both = lazysd.stack([node, node]).materialize()
        assert torch.equal(both.view(torch.uint8), torch.stack([FP4.view(torch.uint8)] * 2))
    source = str(tmp_path / "m.safetensors")
    lazysd.open(source).save(tmp_path / "out")
    assert entry(tmp_path / "out" / "model.safetensors") == entry(tmp_path / "m.safetensors")
    assert_same_bytes(lazysd.open(tmp_path / "out")["x"], torch.ones(2))
    assert main(["diff", source, str(tmp_path / "out")]) == 0
    assert main(["show", source, "w", "--slice", "1, 0"]) == 0
    assert "24, 25, 26, 27, 28, 29" in capsys.readouterr().out
    changed = FP4.clone().view(torch.uint8)
    changed[1, 3, 5] ^= 0x10
    save_file({"w": changed.view(torch.float4_e2m1fn_x2), "x": torch.ones(2)}, tmp_path / "n.safetensors")
    assert main(["diff", source, str(tmp_path / "n.safetensors")]) == 1
    assert main(["inspect", source]) == 0
    lazysd.open(source).save(tmp_path / "dcp", format="dcp")
    again = lazysd.open(tmp_path / "dcp")["w"].materialize()
    assert torch.equal(again.view(torch.uint8), FP4.view(torch.uint8))


@pytest.mark.parametrize("code", ["F6_E2M3", "F6_E3M2"])
def test_six_bits_travel_as_bytes(tmp_path: Path, code: str) -> None:
    data = bytes(range(1, 13))
    ckpt = lazysd.open(with_header(tmp_path / "m.safetensors", code, [2, 8], data))
    assert (tuple(ckpt["w"].shape), ckpt["w"].dtype) == ((2, 6), torch.uint8)
    assert bytes(ckpt["w"].materialize().flatten().tolist()) == data
    ckpt.save(tmp_path / "out")
    assert entry(tmp_path / "out" / "model.safetensors") == entry(tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match=f"cannot write w as dcp: torch has no dtype for {code}"):
        ckpt.save(tmp_path / "dcp", format="dcp")


def test_nothing_computes_with_them(tmp_path: Path) -> None:
    save_file({"w": FP4}, tmp_path / "m.safetensors")
    node = lazysd.open(tmp_path / "m.safetensors")["w"]
    with pytest.raises(UnsupportedCheckpointError, match="cannot cast to or from F4"):
        node.to(torch.float32)
    with pytest.raises(UnsupportedCheckpointError, match="cannot cast to or from F4"):
        lazysd.from_torch(torch.ones(4)).to(torch.float4_e2m1fn_x2)
    with pytest.raises(ValueError, match="unknown dtype 'f4'"):
        dtypes.parse("f4")


def test_rows_that_end_within_a_byte_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"'w': F4 of shape \[2, 3\]: rows end within a byte"):
        lazysd.open(with_header(tmp_path / "m.safetensors", "F4", [2, 3], bytes(3)))
    six = lazysd.open(with_header(tmp_path / "n.safetensors", "F6_E2M3", [2, 8], bytes(12)))
    with pytest.raises(UnsupportedCheckpointError, match="the last axis holds no whole values of 6 bits"):
        six.map(lambda tensor: tensor[:, :4]).save(tmp_path / "out")


def test_f64_is_not_one_of_them(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, dtype=torch.float64)}, tmp_path / "m.safetensors")
    assert main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    assert lazysd.open(tmp_path / "out")["w"].dtype == torch.bfloat16
    save_file({"w": FP4}, tmp_path / "n.safetensors")
    assert main(["convert", str(tmp_path / "n.safetensors"), str(tmp_path / "out4"), "--dtype", "bf16"]) == 3
