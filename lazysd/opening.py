"""open(): a path becomes a Checkpoint. Headers, indexes and JSON are read, tensor data is not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .arguments import checked
from .checkpoint import Checkpoint
from .errors import CutShortError, MissingShardError
from .facts import Facts
from .formats import containers
from .formats.base import Folder, StoredTensor, WholeTensors
from .formats.beside import Beside, beside
from .graph.assemble import assemble
from .graph.building import many_nodes
from .peft.config import AdapterConfig
from .peft.naming import plain_names
from .sizes import parse_size
from .stores.base import Options
from .stores.folder import LocalStore
from .stores.places import place_of
from .tensor.lazy import LazyTensor
from .tensor.whole import LazyTensors


@checked
@many_nodes()
def open(
    path: str | os.PathLike[str] | bytes | Mapping[str, bytes],
    io: str = "mmap",
    follow_links: bool = False,
    partial: bool = False,
    max_memory: int | str | None = None,
) -> Checkpoint:
    """Open a checkpoint: reads headers, indexes and config.json, and no tensor data.

    >>> import lazysd
    >>> from safetensors.torch import save
    >>> import torch
    >>> lazysd.open({"model.safetensors": save({"w": torch.ones(2, 3)})})["w"].shape
    torch.Size([2, 3])

    Args:
        path: a .safetensors file, a folder, an index.json file, an adapter folder, a folder written by
            torch.distributed.checkpoint.save, a file of torch.save (no code of it runs), a model in the hub cache
            ("org/name"), files in memory (bytes, or a mapping of file names to bytes), a folder or file of a web server
            ("https://host/path/", read by range requests), or a model of the hub ("hf://org/name@revision").
        io: "mmap" returns plain tensors as zero-copy views where the files can be mapped; "pread" always copies. The
            bytes are the same.
        follow_links: also follow links that lead out of the folder. Without it, they are refused where the checkpoint
            needs them, and otherwise left out with a remark.
        partial: also open a part of a checkpoint, such as a download that is not finished, to look at what is there:
            `remarks` and `facts.absent` say which shards are missing, and which end too early. It is compared and
            measured as far as it goes; conversions, plans, saves, merges and loading refuse it, and name the shards.
        max_memory: refuse, before it is read, what may take more bytes to open than this (the `.metadata` of
            torch.distributed.checkpoint). None: whatever its size demands.

    Returns:
        The checkpoint. Its `remarks` say what of the folder was left out, and which evidence decided where there was a
        choice.

    Raises:
        MissingShardError: nothing is there; shards are missing, and `partial` is False.
        FormatError, UnsupportedCheckpointError, UnsafePathError: see lazysd.errors.
        MemoryBudgetError: it may take more than `max_memory` to open.
    """
    if io not in ("mmap", "pread"):
        raise ValueError(f'io is "mmap" or "pread", not {io!r}')
    folder = Folder(place_of(path, Options(io, follow_links)), None if max_memory is None else parse_size(max_memory))
    contents = containers.read(folder)
    absent = contents.absent
    if absent is not None and not partial:
        look = "`lazysd inspect` (partial=True in Python) shows what is there"
        if absent.damage:
            raise CutShortError(f"{absent.damage}; {look}")
        raise MissingShardError(f"{absent}; fetch them, or correct the index; {look}")
    around = beside(folder, contents)
    named, adapter_name = plain_names(contents.tensors) if around.is_adapter else ({}, "")
    tensors, nbytes = _nodes(contents.tensors)
    if named:
        tensors = {named.get(key, key): node for key, node in tensors.items()}
    called = f"the adapter's keys carry its name, {adapter_name!r}, which PEFT's files leave out; read without it"
    part = f"not whole: {absent}; all that is said here is of what is there"
    facts = Facts(
        path=_path(folder, {file.name for file in contents.files}),
        files=contents.files,
        tensor_nbytes=nbytes,
        config=around.config,
        metadata=contents.metadata,
        side_files=around.side_files,
        adapter=_adapter(around),
        remarks=(*([part] if absent else []), *contents.remarks, *around.remarks, *([called] if named else [])),
        absent=(absent,) if absent else (),
        opening_nbytes=contents.opening_nbytes,
    )
    return Checkpoint(tensors, facts)


def _nodes(tensors: Mapping[str, StoredTensor]) -> tuple[Mapping[str, LazyTensor], int]:
    """The lazy tensors, and their bytes. What files do not hold whole is put together now, for it may not fit."""
    if isinstance(tensors, WholeTensors):
        return LazyTensors(tensors), tensors.nbytes
    nodes = {key: assemble(LazyTensor, key, tensor) for key, tensor in tensors.items()}
    return nodes, sum(node.nbytes for node in nodes.values())


def _path(folder: Folder, names: set[str]) -> Any:
    """What `Checkpoint.path` says: the file that the user named, or the folder; an index stands for its folder."""
    whole = folder.path if folder.named in names else folder.store.path
    return Path(whole) if isinstance(folder.store, LocalStore) else whole


def _adapter(around: Beside) -> AdapterConfig | None:
    """What the JSON files of an adapter say, adapter_config.json and NeMo's, where there is one."""
    if not around.is_adapter:
        return None
    said = around.adapter_config
    return AdapterConfig(said or {}, around.adapter_stamp, said is not None)
