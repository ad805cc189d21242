"""The containers and sinks, each through the suite that all of them pass; and that a broken one fails it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from lazysd.testing.conformance.containers import ContainerSuite, SinkSuite

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")


class TestSafetensors(ContainerSuite):
    name = "safetensors"

    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        save_file(dict(tensors), folder / "model.safetensors")


class TestSafetensorsShards(ContainerSuite):
    name = "safetensors"

    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        keys, weight_map = sorted(tensors), {}
        for number, part in enumerate((keys[::2], keys[1::2]), 1):
            name = f"model-{number:05d}-of-00002.safetensors"
            save_file({key: tensors[key] for key in part}, folder / name)
            weight_map |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


class TestRankSlices(ContainerSuite):
    name = "safetensors"

    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        for rank in range(2):
            part, info = {}, {}
            for key, tensor in tensors.items():
                rows = tensor.chunk(2) if tensor.dim() and len(tensor) else (tensor,)
                if rank < len(rows):
                    part[key] = rows[rank].contiguous()
                    starts = [rank * len(rows[0])] if tensor.dim() else []
                    info[key] = {"saved_offsets": starts + [0] * (tensor.dim() - 1)}
            metadata = {"DCP_SHARDING_INFO": json.dumps(info)}
            save_file(part, folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", metadata)


class TestDcp(ContainerSuite):
    name = "dcp"

    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        dcp.save(dict(tensors), checkpoint_id=folder, no_dist=True)


class TestTorchZip(ContainerSuite):
    name = "torch"

    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        torch.save(dict(tensors), folder / "pytorch_model.bin")


class TestSafetensorsSink(SinkSuite):
    name = "safetensors"


class TestDcpSink(SinkSuite):
    name = "dcp"
    cannot = ("F6_E2M3", "F6_E3M2")


BROKEN = """
import torch
from unittest.mock import patch
import pytest
from safetensors.torch import save_file
from lazysd.formats.safetensors import container, sink
from lazysd.testing.conformance.containers import ContainerSuite, SinkSuite

@pytest.fixture(autouse=True)
def broken():
    {patch}

class TestContainer(ContainerSuite):
    name = "safetensors"
    def write(self, tensors, folder):
        save_file(dict(tensors), folder / "model.safetensors")

class TestSink(SinkSuite):
    name = "safetensors"
"""
C = "with patch.object(container.Safetensors, {!r}, {}):\n        yield"
S = "with patch.object(sink.SafetensorsSink, {!r}, {}):\n        yield"
READ = "old = container.Safetensors.read\n    "
LAY = "old = sink.SafetensorsSink.lay_out\n    "


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("nothing", "yield"),
        ("recognises", C.format("recognises", "lambda self, folder: True")),
        ("used", READ + C.format("read", "lambda self, folder: old(self, folder)._replace(used=frozenset())")),
        (
            "offset",
            "with patch.object(container, 'Chunk', lambda f, o, s, z: container.Chunk.__wrapped__):\n        yield",
        ),
        ("holes", LAY + S.format("lay_out", "lambda self, r, m: old(self, r, m)._replace(nbytes=1 << 20)")),
        ("names", S.format("file_name", "lambda self, stem, number, total: 'x.safetensors'")),
    ],
)
def test_a_broken_member_fails_the_suite(tmp_path: Path, name: str, broken: str) -> None:
    (tmp_path / f"test_broken_{name}.py").write_text(BROKEN.format(patch=broken))
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-c", os.devnull]
    done = pytest.main([*options, str(tmp_path)])
    assert (done == pytest.ExitCode.OK) == (name == "nothing")
