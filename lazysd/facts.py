"""Facts: what is known about a checkpoint beside its tensors. One object, which every view carries along whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import MissingShardError
from .sizes import format_nbytes
from .stores.base import File
from .stores.strict_json import listing, show


def begun_downloads(sizes: tuple[int, ...]) -> str:
    """ "; 2 unfinished downloads hold 1.2 GB", for the end of a message; "" where there are none."""
    what = f"{len(sizes)} unfinished download{'s hold' if len(sizes) != 1 else ' holds'}"
    return f"; {what} {format_nbytes(sum(sizes))}" if sizes else ""


@dataclass(frozen=True)
class Absent:
    """Shards that belong to a checkpoint and are not there: a download that goes on, or was broken off."""

    where: str  # the index that names them, or the folder of a numbered set
    names: tuple[str, ...]  # the first of them
    num_missing: int
    num_shards: int  # there should be
    homes: Mapping[str, str] | None = None  # tensor -> its missing shard; None where nothing says what they hold
    nbytes: int | None = None  # of their tensors, as far as the index states how much there is in all
    begun: tuple[int, ...] = ()  # bytes so far of each download that is not finished
    cut: tuple[str, ...] = ()  # of the names, files that are there and end too early
    damage: str = ""  # what reading the first of those says

    def __str__(self) -> str:
        of = f", with {len(self.homes)} tensors" if self.homes is not None else ""
        size = f" (about {format_nbytes(self.nbytes)})" if self.nbytes is not None else ""
        more = f" and {self.num_missing - len(self.names)} more" if self.num_missing > len(self.names) else ""
        named = f"{listing(list(self.names))}{more}{size}{begun_downloads(self.begun)}"
        how = "are missing or cut short" if len(self.cut) < self.num_missing else "are cut short"
        how = how if self.cut else "are missing"
        return f"{self.where}: {self.num_missing} of {self.num_shards} shards {how}{of}: {named}"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        lists = {name: list(getattr(self, name)) for name in ("names", "begun", "cut")}
        return {**vars(self), **lists, "homes": dict(self.homes or {})}

    def of(self, new_name: Callable[[str], str | None]) -> Absent | None:
        """The same of a view: `new_name` says what it calls a tensor, or None. None where the view needs no shard."""
        if self.homes is None:
            return self
        found = {name: shard for key, shard in self.homes.items() if (name := new_name(key)) is not None}
        names = tuple(sorted(set(found.values())))
        nbytes = self.nbytes if len(found) == len(self.homes) else None
        cut = tuple(name for name in self.cut if name in names)
        return (
            replace(self, names=names, num_missing=len(names), homes=found, nbytes=nbytes, cut=cut) if found else None
        )


def check_whole(tensors: object, what: str) -> None:
    """As Facts.check_whole, of a mapping that may be a Checkpoint."""
    if isinstance(facts := getattr(tensors, "facts", None), Facts):
        facts.check_whole(what)


def opening_nbytes(*checkpoints: Any) -> int:
    """Of all of them; plain mappings have taken nothing."""
    return sum(checkpoint.facts.opening_nbytes for checkpoint in checkpoints if hasattr(checkpoint, "facts"))


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
    absent: tuple[Absent, ...] = ()  # of a part that was opened to be looked at: what it lacks
    opening_nbytes: int = 0  # of memory that opening took beyond the tensors; objects made later use it again

    def __post_init__(self) -> None:
        for name in ("files", "side_files", "remarks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter_config.json is, or will be, there."""
        return "adapter_config.json" in {file.name for file in self.side_files} | set(self.json_files)

    def lacks(self, key: str) -> str:
        """ "; its shard 'b.safetensors' is missing …", for the end of a message; "" where no shard is, or another's."""
        for absent in self.absent:
            if absent.homes is None or key in absent.homes:
                if absent.homes is None:
                    return f"; {absent}; fetch it again"
                how = "ends before it" if absent.homes[key] in absent.cut else "is missing"
                return f"; its shard {show(absent.homes[key])} {how}; fetch it again"
        return ""

    def check_whole(self, what: str) -> None:
        """Refuse what only a whole checkpoint can go through. Raises MissingShardError, which names the shards."""
        for absent in self.absent:
            raise MissingShardError(f"cannot {what} a part of a checkpoint: {absent}; fetch them first")

    def absent_in(self, new_name: Callable[[str], str | None]) -> tuple[Absent, ...]:
        """`absent` of a view, see Absent.of."""
        return tuple(found for absent in self.absent if (found := absent.of(new_name)) is not None)

    def joined(self, other: Facts) -> Facts:
        """The facts of a union: this side's, both sides' files and remarks; no layout where the two state others."""
        changes: dict[str, Any] = {
            "files": tuple(dict.fromkeys((*self.files, *other.files))),
            "remarks": tuple(dict.fromkeys((*self.remarks, *other.remarks))),
            "opening_nbytes": self.opening_nbytes + other.opening_nbytes,
            "absent": (*self.absent, *(one for one in other.absent if one not in self.absent)),
        }
        if None not in (self.tensor_nbytes, other.tensor_nbytes) and not set(self.files) & set(other.files):
            changes["tensor_nbytes"] = (self.tensor_nbytes or 0) + (other.tensor_nbytes or 0)
        for name in ("layout", "family"):
            mine, theirs = getattr(self, name), getattr(other, name)
            changes[name] = mine if theirs in (None, mine) else None
        return Facts(**{**vars(self), **changes})
