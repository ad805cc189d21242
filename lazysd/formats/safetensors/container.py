"""The safetensors container: one file, the shards of an index, a numbered set, or the row slices of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ... import dtypes
from ...dtypes import PACKED
from ...errors import FormatError, UnsupportedCheckpointError
from ...stores.base import File
from ...stores.strict_json import listing, show
from ...stores.together import together
from ..base import Chunk, Contents, Folder, StoredTensor
from . import rank_slices
from .header import Header, read_header
from .index import INDEX, SAFETENSORS, check_weight_map, find_shards


class Safetensors:
    """Opens `.safetensors` files, their indexes, and folders that hold either."""

    name = "safetensors"
    rank = 10

    def recognises(self, folder: Folder) -> bool:
        names = folder.names if folder.named is None else [folder.named]
        return any(name.endswith(SAFETENSORS) or INDEX.fullmatch(name) for name in names)

    def read(self, folder: Folder) -> Contents:
        if folder.named is None and (names := rank_slices.files_of(folder)):
            return rank_slices.read(folder, names)
        shards = find_shards(folder)
        files = [folder.store.open(name) for name in shards.names]
        headers = read_headers(files)
        for file, header in headers.items():
            rank_slices.refuse_alone(file, header)
        remarks = list(shards.remarks)
        if shards.weight_map is None:
            _check_once(folder, headers)
        else:
            keys = {file.name: header.entries for file, header in headers.items()}
            remarks += check_weight_map(shards.weight_map, keys, f"{folder.store.path}/{shards.index_name}")
        metadata, differing = merged_metadata(headers)
        used = {*shards.names, *([shards.index_name] if shards.index_name else [])}
        tensors = _tensors(headers, shards.weight_map)
        return Contents(tensors, tuple(files), metadata, frozenset(used), (*remarks, *differing), shards.named)


def read_headers(files: Iterable[File]) -> dict[File, Header]:
    """Each file's header; as many at a time as the files say that reads may be in flight."""
    wanted = list(files)
    num_threads = max((file.cost.num_in_flight for file in wanted), default=1)
    return dict(zip(wanted, together(read_header, wanted, num_threads), strict=True))


def merged_metadata(headers: Mapping[File, Header]) -> tuple[dict[str, str], list[str]]:
    """The `__metadata__` that the files agree on, and a remark on each field in which they do not."""
    metadata: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}  # of fields that differ: value -> the first file that says so
    origin: dict[str, str] = {}
    for file, header in headers.items():
        for name, text in header.metadata.items():
            if metadata.setdefault(name, text) != text:
                values.setdefault(name, {metadata[name]: origin[name]}).setdefault(text, file.name)
            origin.setdefault(name, file.name)
    remarks = []
    for name, said in values.items():
        del metadata[name]
        which = ", ".join(f"{show(text)} in {show(where)}" for text, where in list(said.items())[:3])
        more = f" and {len(said) - 3} more" if len(said) > 3 else ""
        remarks.append(f"the files' __metadata__ differs in {show(name)}, which is left out: {which}{more}")
    return metadata, remarks


def _check_once(folder: Folder, headers: Mapping[File, Header]) -> None:
    """Without an index that decides, a tensor may stand in one file only."""
    homes: dict[str, str] = {}
    for file, header in headers.items():
        for key in header.entries:
            if key in homes:
                raise FormatError(
                    f"{listing([key])} stands in two shards of {folder.path}: {homes[key]} and {file.name}; remove one"
                )
            homes[key] = file.name


def _tensors(headers: Mapping[File, Header], weight_map: Mapping[str, str] | None) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file, header in headers.items():
        for key, (code, shape, start, _) in header.entries.items():
            if weight_map is None or weight_map[key] == file.name:
                dims = shape if code not in PACKED else _packed(file, key, code, shape)
                tensors[key] = StoredTensor(code, dims, (Chunk(file, start, (), dims),))
    return tensors


def _packed(file: File, key: str, code: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return dtypes.packed(code, shape)
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"cannot open {file.path}: {show(key)}: {error}") from None


CONTAINER = Safetensors()
