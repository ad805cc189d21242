"""Lazy tensors on a DeviceMesh: which experts a rank holds, and nodes that materialise as DTensors.

Mesh dimensions mean what they mean in NeMo Automodel: `ep` splits experts (axis 0), `ep_shard` splits axis 1,
`ep_replicate` repeats. Source: nemo-automodel 0.7, moe/state_dict_utils.py, and torch.distributed.tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..arguments import checked
from ..errors import LayoutError
from ..graph.boxes import Dims, row_major
from ..graph.sharded import Sharded
from ..tensor.casting import Casting
from ..tensor.lazy import LazyTensor
from ..tensor.parting import Parting
from ..tensor.shaping import Shaping

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from ..graph.base import Op

MESH_DIMS = ("ep", "ep_shard", "ep_replicate")


# Methods and properties of LazyTensor that would speak of, or take apart, elements that other ranks hold.
_OF_WHOLE_TENSORS = frozenset(
    name for part in (Shaping, Parting, Casting) for name in vars(part) if not name.startswith("_")
) - {"dim", "ndimension", "nelement", "element_size", "size", "is_floating_point", "is_complex"}
_OF_WHOLE_TENSORS |= {"numpy", "item", "tolist"}


class LazyDTensor(LazyTensor):
    """A lazy tensor of which this rank holds a part: `shape` is global, `materialize()` gives a DTensor.

    Only the local part is ever read; `local` is that part, an ordinary LazyTensor to slice and inspect.
    """

    __slots__ = ()

    @checked
    def __init__(self, local: LazyTensor, device_mesh: DeviceMesh, placements: tuple[Any, ...], dims: Dims):
        super().__init__(Sharded(device_mesh, tuple(placements)), (local,), dims, local.code)  # type: ignore[arg-type]

    def like(self, op: Op, inputs: tuple[LazyTensor, ...], dims: Dims, code: str) -> LazyTensor:  # type: ignore[override]
        """What is made of a spread tensor is not spread itself."""
        return LazyTensor(op, inputs, dims, code)

    @property
    def local(self) -> LazyTensor:
        """This rank's part."""
        return self.inputs[0]

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh that the parts lie on."""
        return self.op.device_mesh  # type: ignore[attr-defined, no-any-return]

    @property
    def placements(self) -> tuple[Any, ...]:
        """One placement a mesh dimension, as in torch.distributed.tensor."""
        return self.op.placements  # type: ignore[attr-defined, no-any-return]

    def materialize(self, device: Any = None, dtype: Any = None, out: Any = None) -> torch.Tensor:
        """Read this rank's part, into `out` (a DTensor placed alike) or a new DTensor on the mesh's device.

        Raises ValueError where `out` is another shape or placed otherwise.
        """
        if out is not None:
            held = getattr(out, "_local_tensor", None)
            if held is None or tuple(out.shape) != self.dims or tuple(out.placements) != self.placements:
                raise ValueError(f"out is {getattr(out, 'placements', 'no DTensor')}, expected {self.placements}")
            self.local.materialize(out=held)
            return out  # type: ignore[no-any-return]
        return self.wrap(self.local.materialize(device=self.home if device is None else device, dtype=dtype))

    @property
    def home(self) -> str:
        """The device that this rank's part belongs on."""
        return self.device_mesh.device_type

    def wrap(self, local: torch.Tensor) -> torch.Tensor:
        """The DTensor around a materialised local part. No rank talks to another."""
        from torch.distributed.tensor import DTensor

        strides = row_major(self.dims)
        return DTensor.from_local(
            local, self.device_mesh, self.placements, run_check=False, shape=self.shape, stride=strides
        )

    def __getitem__(self, key: Any) -> LazyTensor:
        raise LayoutError("this tensor is spread over ranks; index its part on this rank, .local")

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_WHOLE_TENSORS:
            raise AttributeError(name)  # __getattr__ says why
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a tensor that is spread over ranks has no {name!r}; its part on this rank has: .local")

    def __reduce__(self) -> Any:
        raise TypeError("a tensor on a DeviceMesh cannot be pickled; pickle its part on this rank, .local")


def split_experts(num_experts: int, num_ranks: int, rank: int) -> range:
    """The experts of a rank: equal shares, the first ranks one more where it does not come out even."""
    share, more = divmod(num_experts, num_ranks)
    start = rank * share + min(rank, more)
    return range(start, start + share + (rank < more))


@checked
def experts_of(mesh: DeviceMesh | None, num_experts: int) -> range:
    """The experts that this rank holds; all of them without an `ep` dimension."""
    if mesh is None or "ep" not in (mesh.mesh_dim_names or ()):
        return range(num_experts)
    return split_experts(num_experts, mesh["ep"].size(), mesh["ep"].get_local_rank())


def on_mesh(local: LazyTensor, mesh: DeviceMesh, num_experts: int, is_split: bool = False) -> LazyTensor:
    """A grouped tensor of this rank's experts (experts, …) as a LazyDTensor of `num_experts`.

    Where the mesh has an `ep_shard` dimension, axis 1 is cut to this rank's part first, unless it is already
    (`is_split`). Raises LayoutError on other mesh dimensions.
    """
    from torch.distributed.tensor import Replicate, Shard

    names = tuple(mesh.mesh_dim_names or ())
    unknown = [name for name in names if name not in MESH_DIMS]
    if unknown or not names:
        raise LayoutError(f"a mesh for experts has the dimensions {', '.join(MESH_DIMS)}; this one has {list(names)}")
    sharded = any(name in names and mesh[name].size() > 1 for name in MESH_DIMS[1:])
    meaning = {"ep": Shard(0), "ep_shard": Shard(1), "ep_replicate": Replicate()}
    used = [name for name in names if name == "ep" or sharded]
    if not used:
        return local
    dims = (num_experts, *local.dims[1:])
    if "ep_shard" in used:
        num_parts, part = mesh["ep_shard"].size(), mesh["ep_shard"].get_local_rank()
        if is_split:
            dims = (num_experts, local.dims[1] * num_parts, *local.dims[2:])
        else:
            step = -(-local.dims[1] // num_parts)  # torch.chunk's parts: equal, the last ones shorter
            start = min(part * step, local.dims[1])
            local = local.narrow(1, start, min(step, local.dims[1] - start))
    return LazyDTensor(local, mesh[tuple(used)], tuple(meaning[name] for name in used), dims)
