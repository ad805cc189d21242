"""Random graphs of every op, every way to their bytes, and the code's own constants, drawn together.

A graph comes with what eager torch makes of it (`Drawn`). A path is one way to the bytes: it raises AssertionError
where it gives others. `make test` draws a few thousand; `make fuzz` goes on for as long as it is asked to.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st

import lazysd
import lazysd.iterate  # imported here, so that its constants can be drawn
import lazysd.reduction
import lazysd.tensor.cache
from lazysd import dtypes
from lazysd.comparison.bits import compare
from lazysd.distributed import LazyStorageReader
from lazysd.graph.compute import AddMatmul, Agree, Computed
from lazysd.graph.rewrite import build
from lazysd.move import fill as mover
from lazysd.move import transpose
from lazysd.move.lanes.cuda import CudaLane
from lazysd.move.lanes.host import HostLane
from lazysd.quant.scaled import Dequantize
from lazysd.save.plan import make_plan
from lazysd.stores.base import Cost
from lazysd.stores.memory import MemoryFile
from lazysd.testing.comparing import bits_of
from lazysd.testing.graphs import CODES, OPS, SIZES, Drawn, NotedFile, leaf, leaves, slices, step
from lazysd.testing.reading import merged

KERNELS = [kernel for kernel in transpose.members() if kernel.is_available()]  # whatever this machine has

# Every size that decides how work is cut, by name, with small ones that make tiny tensors behave like huge ones.
CONSTANTS: dict[str, tuple[int, ...]] = {
    "MIN_RUN_SHARE": (1, 2, 7),
    "HOST_BLOCK_NBYTES": (1, 8, 24, 100, 1000),
    "COMPUTE_TILE_NBYTES": (1, 16, 100, 3000),
    "READ_NBYTES": (1, 7, 64),
    "SERIAL_NUMEL": (1, 3, 50),
    "TRANSPOSE_MIN_NUMEL": (1, 4, 30),
    "DENSE_NBYTES": (1, 8, 100),
    "TILE_NUMEL": (1, 2, 5),
    "TILE_EDGE": (1, 2, 5),
    "TILE_NBYTES": (8, 64, 500),
    "SHARE_NBYTES": (1, 30, 300),
    "PARALLEL_MIN_NBYTES": (0, 200),
    "PREFERRED_TILE_NBYTES": (8, 60, 700),
    "SMALLEST_TILE_NBYTES": (8, 100),
    "MOST_NBYTES": (8, 50, 600),
    "CELL_NBYTES": (1, 16, 90),
    "BLOCK_OVERHEAD_NBYTES": (0, 10),
    "MAX_BLOCKS_A_CELL": (1, 2),
    "MAPPED_MIN_NBYTES": (1, 100),
    "BASE_NBYTES": (0,),
    "SCRATCH_NBYTES": (0,),
    "COMPUTE_NBYTES": (0,),
    "NODE_NBYTES": (0,),
    "OUTPUT_NBYTES": (0,),
    "PROOF_NBYTES": (0,),
}
# What a file says its reads cost; MIN_RUN_SHARE is a part of the gap.
COSTS: dict[str, tuple[int, ...]] = {
    "gap_nbytes": (0, 1, 5, 16, 100),
    "block_nbytes": (1, 24, 1000),
    "num_in_flight": (1, 3),
}
assert set(COSTS) == set(Cost._fields)
ROWS, WIDTHS = (1, 2, 3, 5, 11), (1024, 4096, 4099, 9001)  # rows further apart than the real gap
FINITE = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@cache
def _holders(name: str) -> list[ModuleType]:
    """The modules that hold a constant by its name."""
    found = [module for key, module in sys.modules.items() if key.startswith("lazysd.") and name in vars(module)]
    assert found, f"no module has {name} any more: draw the constant that took over"
    return found


def drawn_constants(scale: int = 1) -> st.SearchStrategy[dict[str, int]]:
    """Some constants with values far below their own, times `scale`; the rest as they are."""
    fixed = ("MIN_RUN_SHARE", "TILE_EDGE", "num_in_flight")  # the kernel takes no wider tiles
    values = {
        name: st.sampled_from([value if name in fixed else scale * value for value in values])
        for name, values in (CONSTANTS | COSTS).items()
    }
    return st.fixed_dictionaries({}, optional=values)


@contextmanager
def constants(chosen: dict[str, int]) -> Iterator[None]:
    """The package with other constants, wherever a module holds them by that name."""
    with ExitStack() as undo:
        for name, value in chosen.items():
            for module in _holders(name) if name not in COSTS else ():
                undo.enter_context(patch.object(module, name, value))
        for name, value in chosen.items():
            if name in COSTS:
                cost = MemoryFile.cost._replace(**{name: value})
                undo.enter_context(patch.object(MemoryFile, "cost", cost))
        block = chosen.get("HOST_BLOCK_NBYTES", HostLane.block_nbytes)
        undo.enter_context(patch.object(HostLane, "block_nbytes", block))
        yield


def _of_values(values: torch.Tensor, code: str, draw: Any) -> Drawn:
    """A leaf with these values, and a few ops of its own that keep its shape."""
    bits = values.to(FINITE[code]).view(dtypes.bits_dtype(code))
    node = leaf(bits, code, draw(st.sampled_from(("file", "memory", "strided"))))
    if bits.dim() == 2 and draw(st.booleans()):
        turned = leaf(bits.t().contiguous(), code, "file")
        node = turned.permute(1, 0)
    return Drawn(node, bits)


@st.composite
def computed(draw: Any) -> tuple[str, Drawn]:
    """A tensor whose values are calculated; the oracle calculates the whole of it by plain torch."""
    rows, columns = draw(st.sampled_from((1, 2, 5, 8, 13))), draw(st.sampled_from((1, 3, 4, 9, 16)))
    values = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    random = lambda *dims: torch.randn(dims, generator=values)  # noqa: E731
    code = draw(st.sampled_from(("BF16", "F16", "F32")))
    kind = draw(st.sampled_from(("cast", "dequantize", "matmul")))
    if kind == "cast":
        source = _of_values(random(rows, columns), draw(st.sampled_from(tuple(FINITE))), draw)
        eager = source.expected.to(FINITE[code])
        return code, Drawn(source.node.to(FINITE[code]), bits_of(eager))
    if kind == "dequantize":
        block = draw(st.sampled_from((1, 2, 3, 128))), draw(st.sampled_from((1, 2, 5, 128)))
        weight = _of_values(random(rows, columns), "F8_E4M3", draw)
        scale = _of_values(random(-(-rows // block[0]), -(-columns // block[1])), "F32", draw)
        factors = scale.expected.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
        eager = (weight.expected.float() * factors).to(FINITE[code])
        return code, Drawn(build(Dequantize(block, code), (weight.node, scale.node)), bits_of(eager))
    rank, scale = draw(st.integers(1, 3)), draw(st.sampled_from((1.0, 0.3)))
    base, a, b = (_of_values(random(*dims), code, draw) for dims in ((rows, columns), (rows, rank), (rank, columns)))
    total = torch.zeros(rows, columns)
    for k in range(rank):
        total += a.expected.float()[:, k : k + 1] * b.expected.float()[k : k + 1]
    eager = (total * scale + base.expected.float()).to(FINITE[code])
    return code, Drawn(build(AddMatmul(scale), (base.node, a.node, b.node)), bits_of(eager))


@st.composite
def graphs(draw: Any, kind: str = "small") -> Drawn:
    """A graph of structural ops and caches over a small tensor, one wider than the real gap, or a computed one."""
    if kind == "computed":
        code, drawn = draw(computed())
    else:
        code = draw(st.sampled_from(CODES))
        dims = draw(st.lists(st.sampled_from(SIZES), max_size=4))
        if kind == "wide":
            dims = [*draw(st.lists(st.sampled_from(ROWS), max_size=2)), draw(st.sampled_from(WIDTHS))]
        drawn = draw(leaves(code, tuple(dims)))
    limit = 5000 if kind != "wide" else 2 * drawn.bits.numel()
    for name in draw(st.lists(st.sampled_from((*OPS, "cached", "agree")), max_size=6)):
        if name == "cached":
            drawn = Drawn(lazysd.cached(drawn.node, draw(st.sampled_from((1, 40, 500, "1MB")))), drawn.bits)
        elif name == "agree":
            twin = leaf(drawn.bits.contiguous(), code)
            drawn = Drawn(build(Agree(("one", "two")), (drawn.node, twin)), drawn.bits)
        elif drawn.bits.dim() < 6 and drawn.bits.numel() <= limit:
            drawn = draw(step(drawn, code, name))
    return drawn


def same(found: torch.Tensor, bits: torch.Tensor) -> bool:
    """Shape and every bit."""
    return tuple(found.shape) == tuple(bits.shape) and torch.equal(bits_of(found), bits.contiguous())


def materialize(drawn: Drawn, data: st.DataObject) -> None:
    found = drawn.node.materialize()
    assert found.dtype == dtypes.to_torch(drawn.node.code)
    assert same(found, drawn.bits)
    assert same(drawn.node.materialize(), drawn.bits)  # from what a cache now holds


def part(drawn: Drawn, data: st.DataObject) -> None:
    key = data.draw(slices(drawn.bits.shape))
    assert same(drawn.node[key].materialize(), drawn.bits[key])


def reads(drawn: Drawn, data: st.DataObject) -> None:
    files = _files(drawn.node)
    for number, file in enumerate(files):
        file.path = f"/memory/{number}"
        file.calls.clear()
    promised = drawn.node.reads()
    assert not any(file.calls for file in files)
    drawn.node.materialize()
    assert promised == merged((file.path, *call) for file in files for call in file.calls)


def _frame(drawn: Drawn, data: st.DataObject) -> tuple[torch.Tensor, torch.Tensor, tuple[slice, ...], list[int]]:
    """(destination, the memory around it, where it stands there, the order of its axes there)."""
    order = data.draw(st.permutations(range(drawn.bits.dim())))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    gaps = [data.draw(st.sampled_from((1, 1, 2, 3))) for _ in order]
    dims = [drawn.bits.shape[k] for k in order]
    wide = torch.zeros([gap * size for gap, size in zip(gaps, dims, strict=True)], dtype=torch.uint8)
    wide = wide.to(drawn.bits.dtype) + 7
    slot = tuple(slice(gap - 1, None, gap) for gap in gaps)
    target = wide[slot].permute(inverse).view(dtypes.to_torch(drawn.node.code))
    return target, wide, slot, list(order)


def out(drawn: Drawn, data: st.DataObject) -> None:
    """Dense, transposed and strided destinations; nothing beside them changes."""
    target, wide, slot, order = _frame(drawn, data)
    assert target.shape == drawn.bits.shape
    frame = wide.clone()
    assert drawn.node.materialize(out=target) is target
    frame[slot] = drawn.bits.permute(order)
    assert torch.equal(wide, frame)


def refused(drawn: Drawn, data: st.DataObject) -> None:
    """Destinations whose elements share a place."""
    if drawn.bits.numel() < 2:
        return
    dtype = dtypes.to_torch(drawn.node.code)
    target = torch.zeros(1, dtype=drawn.bits.dtype).view(dtype).expand(drawn.bits.shape)
    with pytest.raises(ValueError, match="share one place"):
        drawn.node.materialize(out=target)
    last = data.draw(st.integers(1, 2))
    strides = [last] * drawn.bits.dim()
    if sum(size > 1 for size in drawn.bits.shape) > 1:
        target = torch.zeros(2 * sum(drawn.bits.shape), dtype=drawn.bits.dtype).view(dtype)
        with pytest.raises(ValueError, match="share one place"):
            drawn.node.materialize(out=target.as_strided(drawn.bits.shape, strides))


def ring(drawn: Drawn, data: st.DataObject) -> None:
    """Through a pinned ring of a few bytes, whose copies happen as late as CUDA allows."""
    from test_device import LateLane

    if any(isinstance(node.op, Computed) for node in _nodes(drawn.node)):
        return  # there, work on the device follows the copies on one stream; here it would come before them
    with patch.object(LateLane, "block_nbytes", data.draw(st.sampled_from((16, 64, 256)))):
        lane = LateLane(data.draw(st.sampled_from((16, 100, 1024))))
    target, wide, slot, order = _frame(drawn, data)
    frame = wide.clone()
    with patch.object(mover, "lane_for", lambda device: lane):
        mover.fill_node(target, drawn.node)
    lane.caller.run()
    frame[slot] = drawn.bits.permute(order)
    assert torch.equal(wide, frame)
    assert isinstance(lane, CudaLane)


def _mapping(drawn: Drawn, data: st.DataObject) -> dict[str, Drawn]:
    """Tensors that belong together: the graph, parts of it that share its source, another one."""
    found = {"whole": drawn}
    if drawn.bits.dim() and data.draw(st.booleans()):
        dim = data.draw(st.integers(0, drawn.bits.dim() - 1))
        if size := drawn.bits.shape[dim]:
            length = data.draw(st.integers(max(1, size // 12), size))
            mine, theirs = drawn.node.split(length, dim), drawn.bits.split(length, dim)
            found = {f"part{n}": Drawn(a, b) for n, (a, b) in enumerate(zip(mine, theirs, strict=True))}
    if data.draw(st.booleans()):
        found["other"] = data.draw(graphs())
    return found


def save(drawn: Drawn, data: st.DataObject) -> None:
    """Through shards of a few bytes at the smallest budget there is; read back by hand."""
    wanted = _mapping(drawn, data)
    ckpt = lazysd.Checkpoint({key: one.node for key, one in wanted.items()})
    shard = data.draw(st.sampled_from((1, 30, 400, "5GB")))
    workers = data.draw(st.sampled_from((1, 2, 3)))
    smallest = make_plan(dict(ckpt), shard, "1GB", workers).smallest_nbytes
    budget = smallest + data.draw(st.sampled_from((0, 100, 1000, 1 << 30)))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        plan = ckpt.save(Path(folder) / "out", max_shard_size=shard, max_memory=budget, workers=workers)
        assert plan.peak_nbytes <= max(budget, 1)
        found = dict(stored(Path(folder) / "out"))
    assert found.keys() == wanted.keys()
    for key, one in wanted.items():
        expected = (
            one.node.code,
            list(one.bits.shape),
            one.bits.numpy().tobytes(),
        )
        assert found[key] == expected, key


def stored(folder: Path) -> Iterator[tuple[str, tuple[str, list[int], bytes]]]:
    """(key, (dtype, shape, bytes)) of every safetensors file, read as the format says."""
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        for key, entry in json.loads(raw[8:end]).items():
            if key != "__metadata__":
                first, last = entry["data_offsets"]
                yield key, (entry["dtype"], entry["shape"], raw[end + first : end + last])


def compared(drawn: Drawn, data: st.DataObject) -> None:
    """Equal to the same bits elsewhere, and not to others: the place that differs is found."""
    node, bits = drawn
    twin = bits.contiguous().clone()
    workers = data.draw(st.sampled_from((1, 2)))
    assert compare({"x": node}, {"x": leaf(twin, node.code)}, num_workers=workers).equal
    if bits.numel():
        place = tuple(data.draw(st.integers(0, size - 1)) for size in bits.shape)
        twin[place] = twin[place] ^ 1 if node.code != "BOOL" else 1 - twin[place]
        found = compare({"x": node}, {"x": leaf(twin, node.code)}, num_workers=workers)
        assert [(d.kind, d.position, d.num_different) for d in found.differences] == [("values", place, 1)]


def iterated(drawn: Drawn, data: st.DataObject) -> None:
    wanted = _mapping(drawn, data)
    ckpt = lazysd.Checkpoint({key: one.node for key, one in wanted.items()})
    found = dict(ckpt.iter_tensors(prefetch=data.draw(st.sampled_from((1, 50, "1MB")))))
    assert found.keys() == wanted.keys()
    assert all(same(found[key], one.bits) for key, one in wanted.items())


def checkpointed(drawn: Drawn, data: st.DataObject) -> None:
    """torch.distributed.checkpoint loads it, into strides of its own."""
    import torch.distributed.checkpoint as dcp

    target, wide, slot, order = _frame(drawn, data)
    frame = wide.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"x": target}, storage_reader=LazyStorageReader({"x": drawn.node}), no_dist=True)
    frame[slot] = drawn.bits.permute(order)
    assert torch.equal(wide, frame)


def sharded(drawn: Drawn, data: st.DataObject) -> None:
    """A DTensor's local part, on one rank of a mesh that has no other processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if not drawn.bits.numel():
        return
    dim = data.draw(st.integers(0, max(0, drawn.bits.dim() - 1)))
    rank, world = data.draw(st.sampled_from(((0, 2), (1, 2), (2, 3), (3, 4))))
    placement = Shard(dim) if drawn.bits.dim() and data.draw(st.booleans()) else Replicate()
    with one_rank(rank, world):
        mesh = init_device_mesh("cpu", (world,))
        chunks = drawn.bits.chunk(world, dim) if isinstance(placement, Shard) else [drawn.bits] * world
        mine = chunks[rank] if rank < len(chunks) else drawn.bits.narrow(dim, 0, 0)
        local = torch.empty(mine.shape, dtype=drawn.bits.dtype).view(dtypes.to_torch(drawn.node.code))
        shape, strides = drawn.bits.shape, torch.empty(drawn.bits.shape).stride()
        spread = DTensor.from_local(local, mesh, [placement], run_check=False, shape=shape, stride=strides)
        drawn.node.materialize(out=spread)
        assert same(spread.to_local(), mine)


@contextmanager
def one_rank(rank: int, world: int) -> Iterator[None]:
    """A process group of which only this process exists."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _nodes(node: Any) -> list[Any]:
    found: dict[int, Any] = {}
    stack = [node]
    while stack:
        here = stack.pop()
        if id(here) not in found:
            found[id(here)] = here
            stack.extend(here.inputs)
    return list(found.values())


def _files(node: Any) -> list[NotedFile]:
    files = (getattr(here.op, "file", None) for here in _nodes(node))
    return list({id(file): file for file in files if isinstance(file, NotedFile)}.values())


SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a save syncs its files; memory does so at once
PATHS: dict[str, Callable[[Drawn, st.DataObject], None]] = {
    "materialize": materialize,
    "part": part,
    "reads": reads,
    "out": out,
    "refused": refused,
    "ring": ring,
    "save": save,
    "compared": compared,
    "iterated": iterated,
    "checkpointed": checkpointed,
    "sharded": sharded,
}


def check(path: str, data: st.DataObject) -> None:
    """One graph, under some constants, along one path, moved by one kernel."""
    kind = data.draw(st.sampled_from(("small", "small", "wide", "computed")))
    kernel = data.draw(st.sampled_from(KERNELS))
    chosen = patch.object(transpose, "chosen", lambda: kernel)
    with chosen, constants(data.draw(drawn_constants(300 if kind == "wide" else 1))):
        PATHS[path](data.draw(graphs(kind)), data)
