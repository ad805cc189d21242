"""Slices that each rank of a training run wrote into files of its own, put together by the offsets that they state.

Source: torch 2.13, distributed/checkpoint/_hf_utils.py: `shard-{rank}-model-{n}-of-{N}.safetensors`, with
`DCP_SHARDING_INFO` in `__metadata__`: tensor -> {"saved_offsets": [first row, first column, ...]}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import FormatError, UnsupportedCheckpointError
from ...stores.base import File
from ...stores.strict_json import parse_json, read_json, show
from ..base import Chunk, Contents, Folder, StoredTensor
from .entries import Header
from .header import read_header

INFO = "DCP_SHARDING_INFO"
_NAME = re.compile(r"shard-(\d{1,9})-model-(\d{1,9})-of-(\d{1,9})\.safetensors")
_LIMIT = 2**63
# Sizes that config.json states, and the tensors whose first axis has them. Where the last ranks are missing, nothing
# else shows it: what is left fits together, only shorter.
_STATED = (
    ("vocab_size", re.compile(r"(?:model\.)?embed_tokens\.weight|lm_head\.weight")),
    (
        "hidden_size",
        re.compile(r"(?:model\.)?(?:norm|layers\.\d{1,9}\.(?:input_layernorm|post_attention_layernorm))\.weight"),
    ),
)
_WHOLE = "or have torch make whole files of them (torch.distributed.checkpoint.HuggingFaceStorageWriter, consolidation)"


def files_of(folder: Folder) -> list[str]:
    """The folder's files of rank slices; none where other safetensors lie there too, whole ones that are to be read."""
    names = folder.ending(".safetensors")
    return names if names and all(_NAME.fullmatch(name) for name in names) else []


def refuse_alone(file: File, header: Header) -> None:
    """Raise UnsupportedCheckpointError where a file that is read by itself holds slices, which look like tensors."""
    if INFO in header.metadata:
        raise UnsupportedCheckpointError(
            f"{file.path} holds one rank's slices ({INFO} in its __metadata__), not whole tensors; open the folder "
            f"with the files of all ranks, {_WHOLE}"
        )


def read(folder: Folder, names: list[str]) -> Contents:
    """All ranks' slices. That they fit together without holes is checked where the tensors are assembled."""
    ranks = sorted({int(match[1]) for name in names if (match := _NAME.fullmatch(name))})
    missing = next((rank for rank in range(1, len(ranks) + 1) if rank not in ranks), 0)
    if missing:
        raise FormatError(
            f"cannot open {folder.path}: the slices of rank {missing} (shard-{missing:05d}-…) are missing; fetch them"
        )
    chunks: dict[str, list[Chunk]] = {}
    codes: dict[str, str] = {}
    files: list[File] = []
    metadata: dict[str, str] = {}
    for name in names:
        file = folder.store.open(name)
        header = read_header(file)
        files.append(file)
        metadata |= {field: text for field, text in header.metadata.items() if field != INFO}
        offsets = _offsets(file, header)
        for key, entry in header.entries.items():
            if codes.setdefault(key, entry.code) != entry.code:
                raise FormatError(
                    f"{file.path}: {show(key)} is {entry.code} here and {codes[key]} in another rank's file"
                )
            starts = _starts(file, key, offsets, len(entry.shape))
            chunks.setdefault(key, []).append(Chunk(file, entry.start, starts, entry.shape))
    tensors = {key: StoredTensor(codes[key], _dims(key, parts), tuple(parts)) for key, parts in chunks.items()}
    _check_ends(folder, tensors)
    remark = (
        f"{folder.path}: the slices of {len(ranks)} ranks were put together by their offsets; the files do not say "
        "how many ranks there were, so check that none is missing"
    )
    return Contents(tensors, tuple(files), metadata, frozenset(names), (remark,))


def _check_ends(folder: Folder, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse slices that end before the sizes that config.json states."""
    if not folder.store.has("config.json"):
        return
    config = read_json(folder.store.open("config.json"), "config.json", constants=True)
    for name, keys in _STATED:
        stated = config.get(name)
        if type(stated) is not int:
            continue
        for key, tensor in tensors.items():
            if keys.fullmatch(key) and tensor.dims and tensor.dims[0] < stated:
                raise FormatError(
                    f"cannot open {folder.path}: the slices of {show(key)} end at row {tensor.dims[0]} of {stated} "
                    f"({name} in config.json), so the last ranks' files are missing; fetch them"
                )


def _offsets(file: File, header: Header) -> Mapping[str, Any]:
    try:
        value = parse_json(header.metadata.get(INFO, "null").encode("utf-8", "surrogatepass"), dict)
    except FormatError as error:
        raise FormatError(f"{file.path}: its {INFO} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file.path}: expected {INFO} to say where its slices lie, found {show(value)}")
    return value


def _starts(file: File, key: str, offsets: Mapping[str, Any], num_axes: int) -> tuple[int, ...]:
    said = offsets.get(key)
    starts = said.get("saved_offsets") if isinstance(said, dict) else None
    whole = isinstance(starts, list) and all(type(start) is int and 0 <= start < _LIMIT for start in starts)
    if not whole or starts is None or len(starts) != num_axes:
        raise FormatError(
            f"{file.path}: expected {INFO} to give {num_axes} saved_offsets for {show(key)}, found {show(starts)}"
        )
    return tuple(starts)


def _dims(key: str, parts: list[Chunk]) -> tuple[int, ...]:
    """The smallest shape that holds every part. Parts of no elements (ranks without rows) do not count."""
    if len({len(part.sizes) for part in parts}) > 1:
        raise FormatError(f"{show(key)}: its slices have different numbers of axes; they are of different saves")
    ends = [tuple(map(sum, zip(part.starts, part.sizes, strict=True))) for part in parts if 0 not in part.sizes]
    return tuple(map(max, zip(*ends, strict=True))) if ends else parts[0].sizes
