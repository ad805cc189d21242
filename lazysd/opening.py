"""open(): a path becomes a Checkpoint. Headers, indexes and JSON are read, tensor data is not."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import FormatError
from .graph.leaves import FileRange
from .graph.node import LazyTensor
from .layouts import AdapterConfig
from .storage.header import read_header
from .storage.index import check_weight_map, find_shards, read_json
from .storage.reader import SourceFile


def open(path: str | os.PathLike[str], io: str = "mmap") -> Checkpoint:
    """Open a checkpoint: reads headers, indexes and config.json, and no tensor data.

    Args:
        path: a .safetensors file, a folder, a .safetensors.index.json file, an adapter folder, or a model in the hub
            cache ("org/name").
        io: "mmap" returns plain tensors as zero-copy views; "pread" always copies. The bytes are the same.

    Raises:
        FormatError, UnsupportedCheckpointError, UnsafePathError, MissingShardError: see lazysd.errors.
    """
    if io not in ("mmap", "pread"):
        raise ValueError(f'io is "mmap" or "pread", not {io!r}')
    shards = find_shards(path)
    tensors: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    metadata: dict[str, str] = {}
    files, keys_by_file = [], {}
    for name, real in shards.files.items():
        file = SourceFile(str(real), io=io)
        header = read_header(real)
        file.check_unchanged()
        files.append(file)
        keys_by_file[name] = header.entries
        metadata |= header.metadata
        for key, entry in header.entries.items():
            if key in tensors:
                raise FormatError(f"{key} stands in two shards of {shards.root}: {origins[key]} and {name}; remove one")
            tensors[key] = LazyTensor(FileRange(file, entry.start), (), entry.shape, entry.code)
            origins[key] = name
    if shards.weight_map is not None:
        check_weight_map(shards.weight_map, keys_by_file, str(shards.root / "model.safetensors.index.json"))
    config_path = shards.root / "config.json"
    config = read_json(config_path, "config.json") if config_path.is_file() else None
    given = Path(os.fsdecode(path))
    is_folder = not (given.is_file() and given.suffix == ".safetensors")
    adapter = _adapter(shards.root) if is_folder or given.name == "adapter_model.safetensors" else None
    return Checkpoint(
        tensors,
        path=shards.root if is_folder else given,
        files=files,
        config=config,
        metadata=metadata,
        side_files=_side_files(shards.root) if is_folder else (),
        adapter=adapter,
    )


def _adapter(root: Path) -> AdapterConfig | None:
    """What the JSON files of an adapter say, where there is adapter_config.json."""
    said, stamp = root / "adapter_config.json", root / "automodel_peft_config.json"
    if not said.is_file():
        return None
    stamped = read_json(stamp, stamp.name) if stamp.is_file() else None
    return AdapterConfig(read_json(said, said.name), stamped)


_WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"),
    *(".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".pkl"),
)


def _side_files(root: Path) -> list[Path]:
    """Files that belong to the checkpoint beside its weights: config, tokenizer, licence."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHTS)
        and path.name != "lazysd.manifest.json"
    ]  # fmt: skip
