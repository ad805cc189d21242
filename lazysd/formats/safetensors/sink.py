"""Writing safetensors: a header, then the tensors one after the other; several files get an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from ... import dtypes
from ..base import Around, Placed, Row, StoredRows
from .header_writing import header_pieces, lay_out_header
from .index import format_index


class SafetensorsSink:
    """Writes `model.safetensors`, or numbered shards and their index, as transformers names them."""

    name = "safetensors"
    index_row_nbytes = 200  # a list of names and files, sorted

    def file_name(self, stem: str, number: int, total: int) -> str:
        return f"{stem}.safetensors" if total == 1 else f"{stem}-{number:05d}-of-{total:05d}.safetensors"

    def lay_out(self, rows: Iterable[Row], metadata: Mapping[str, str]) -> StoredRows:
        nbytes = 0

        def counted() -> Iterator[Row]:
            nonlocal nbytes
            for row in rows:
                nbytes += row.nbytes
                yield row

        header_nbytes, starts = lay_out_header(map(_entry, counted()), metadata)
        return StoredRows(starts, header_nbytes, header_nbytes + nbytes)

    def around(
        self, rows: Iterable[Row], metadata: Mapping[str, str], checksums: Sequence[int], around_nbytes: int
    ) -> Around:
        at = 0
        for piece in header_pieces(map(_entry, rows), metadata, around_nbytes):
            yield at, piece
            at += len(piece)

    def index(self, stem: str, placed: Iterable[Placed], num_files: int) -> Iterator[tuple[str, Iterable[bytes]]]:
        if num_files < 2:
            return
        homes: list[tuple[str, str]] = []
        num_parameters = nbytes = 0
        for file, row, _ in placed:
            homes.append((row.key, file))
            num_parameters += prod(row.dims)
            nbytes += row.nbytes
        yield f"{stem}.safetensors.index.json", format_index(homes, nbytes, num_parameters)


def _entry(row: Row) -> tuple[str, str, tuple[int, ...]]:
    return row.key, row.code, dtypes.unpacked(row.code, row.dims)


SINK = SafetensorsSink()
