"""Writing a folder that torch.distributed.checkpoint loads: archives of one tensor each, and where each of them is.

Source: torch 2.13, distributed/checkpoint/filesystem.py and metadata.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ... import dtypes
from ...errors import UnsupportedCheckpointError
from ..base import Around, Placed, Row, StoredRows
from .archive import ALIGN_NBYTES, frame
from .reading import METADATA


class DcpSink:
    """Writes `.metadata` and `__0_N.distcp`. Every tensor is one chunk; dcp.load cuts from it what a rank wants."""

    name = "dcp"
    index_row_nbytes = 3000  # its metadata are objects of torch, pickled in one go

    def file_name(self, stem: str, number: int, total: int) -> str:
        return f"__0_{number - 1}.distcp"

    def lay_out(self, rows: Iterable[Row], metadata: Mapping[str, str]) -> StoredRows:
        starts: list[int] = []
        at = data = 0
        for row in rows:
            if row.code.startswith("F6_"):
                raise UnsupportedCheckpointError(f"cannot write {row.key} as dcp: torch has no dtype for {row.code}")
            before, behind = map(len, frame(row.code, row.dims, row.nbytes, 0))
            starts.append(at + before)
            at += before + row.nbytes + behind
            at += -at % ALIGN_NBYTES
            data += row.nbytes
        return StoredRows(starts, at - data, at)

    def around(
        self, rows: Iterable[Row], metadata: Mapping[str, str], checksums: Sequence[int], around_nbytes: int
    ) -> Around:
        at = 0
        for row, checksum in zip(rows, checksums, strict=True):
            before, behind = frame(row.code, row.dims, row.nbytes, checksum)
            yield at, before
            at += len(before) + row.nbytes
            end = at + len(behind)
            yield at, behind + bytes(-end % ALIGN_NBYTES)
            at = end + -end % ALIGN_NBYTES

    def index(self, stem: str, placed: Iterable[Placed], num_files: int) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield METADATA, (_metadata(placed),)


def _metadata(placed: Iterable[Placed]) -> bytes:
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

    described: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for file, row, start in placed:
        size, origin = torch.Size(row.dims), torch.Size([0] * len(row.dims))
        properties = TensorProperties(dtype=dtypes.to_torch(row.code))
        described[row.key] = TensorStorageMetadata(properties, size, [ChunkStorageMetadata(origin, size)])
        before, behind = map(len, frame(row.code, row.dims, row.nbytes, 0))
        places[MetadataIndex(row.key, origin, 0)] = _StorageInfo(file, start - before, before + row.nbytes + behind)
    planner = {key: (key,) for key in described}
    return pickle.dumps(
        Metadata(described, planner_data=planner, storage_data=places, storage_meta=StorageMeta()), protocol=4
    )


SINK = DcpSink()
