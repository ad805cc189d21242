"""Facts: what is known about a checkpoint beside its tensors. One object, which every view carries along whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .stores.base import File


@dataclass(frozen=True)
class Facts:
    """What a folder, and whoever opened or converted it, states. Nothing here is derived from keys or shapes."""

    path: Path | str | None = None  # a str where the source is no local file: "memory:", a URL
    files: tuple[File, ...] = ()  # that the tensors were opened from
    tensor_nbytes: int | None = None  # of all tensors that were opened; None where nobody counted
    config: dict[str, Any] | None = None  # config.json
    metadata: Mapping[str, str] = field(default_factory=dict)  # `__metadata__` of the files
    side_files: tuple[File, ...] = ()  # copied by a save as they are
    json_files: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # written instead of side files of that name
    layout: str | None = None  # stated; where it is not, keys and shapes are asked
    family: str | None = None  # likewise
    adapter: Any = None  # what adapter_config.json says (an AdapterConfig), where there is one
    remarks: tuple[str, ...] = ()  # what whoever looks at the result should know: one sentence each

    def __post_init__(self) -> None:
        for name in ("files", "side_files", "remarks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter_config.json is, or will be, there."""
        return "adapter_config.json" in {file.name for file in self.side_files} | set(self.json_files)

    def joined(self, other: Facts) -> Facts:
        """The facts of a union: this side's, both sides' files and remarks; no layout where the two state others."""
        changes: dict[str, Any] = {
            "files": tuple(dict.fromkeys((*self.files, *other.files))),
            "remarks": tuple(dict.fromkeys((*self.remarks, *other.remarks))),
        }
        if None not in (self.tensor_nbytes, other.tensor_nbytes) and not set(self.files) & set(other.files):
            changes["tensor_nbytes"] = (self.tensor_nbytes or 0) + (other.tensor_nbytes or 0)
        for name in ("layout", "family"):
            mine, theirs = getattr(self, name), getattr(other, name)
            changes[name] = mine if theirs in (None, mine) else None
        return Facts(**{**vars(self), **changes})
