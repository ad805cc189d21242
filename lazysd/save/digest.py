"""A fingerprint of what a plan makes and from what: equal digests make equal files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from .._version import __version__
from ..graph.leaves import FileRange, InMemory
from ..graph.node import Node
from .jobs import Shard

_REMEMBERED = 1 << 16  # nodes whose fingerprint is kept; what several tensors share is found again as a rule


def digest(shards: Iterable[Shard]) -> str:
    """The fingerprint of shards: the layout of their files, and every tensor's graph down to the sources' identities.

    A node's fingerprint says all that is below it, so that any of them can be forgotten, and made again.
    """
    state = hashlib.sha256(f"lazysd {__version__}".encode())
    known: dict[int, bytes] = {}
    for shard in shards:
        state.update(f"|{shard.name}|{shard.nbytes}".encode())
        for offset, piece in shard.around([0] * shard.num_targets):
            state.update(f"|{offset}|".encode() + piece)
        for target in shard.targets:
            state.update(_content(target.node, known))
            if len(known) > _REMEMBERED:
                known.clear()
    return state.hexdigest()


def _content(root: Node, known: dict[int, bytes]) -> bytes:
    """The fingerprint of a node and all below it; `known` has those of nodes that have inputs, by their id."""
    if not root.inputs:
        return _own(root)
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = [part for part in node.inputs if part.inputs and id(part) not in known]
        if waiting and id(node) not in known:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        if id(node) not in known:
            state = hashlib.sha256(_own(node))
            for part in node.inputs:
                below = known[id(part)] if part.inputs else _own(part)
                state.update(b"|%d|" % len(below) + below)
            known[id(node)] = state.digest()
    return known[id(root)]


def _own(node: Node) -> bytes:
    op = node.op
    if isinstance(op, FileRange):
        source: Any = op.file
        said = f"{op.file.path}@{op.offset}{tuple(source.identity)}{node.code}{node.dims}"
    elif isinstance(op, InMemory):
        said = f"memory {id(op.tensor)} of process {os.getpid()} {node.code}{node.dims}"
    else:
        said = f"{op!r}{len(node.inputs)}{node.code}{node.dims}"
    return said.encode("utf-8", "surrogateescape")
