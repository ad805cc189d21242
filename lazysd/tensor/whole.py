"""The lazy tensors behind headers of files that hold whole tensors: made, all at once, when one is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..formats.base import WholeTensors
from ..graph.assemble import assemble_columns
from ..graph.building import many_nodes
from .lazy import LazyTensor


class LazyTensors(Mapping[str, LazyTensor]):
    """Key -> lazy tensor, the same one each time. How many there are, and their names, is known before."""

    def __init__(self, stored: WholeTensors):
        self._stored = stored

    @property
    def made(self) -> dict[str, LazyTensor]:
        """All of them."""
        found: dict[str, LazyTensor] | None = self.__dict__.get("_made")
        if found is None:
            with many_nodes():
                made = assemble_columns(LazyTensor, self._stored.columns)
            found = self.__dict__.setdefault("_made", made)  # of threads that meet here, all get the first one's
        return found

    def __getitem__(self, key: str) -> LazyTensor:
        return self.made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
