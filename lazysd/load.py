"""load_into: fill a module from a checkpoint, each parameter in its place, nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from . import buffers, dtypes, layouts
from .arguments import checked
from .errors import LazysdError
from .facts import check_whole
from .graph.compute import Agree
from .graph.rewrite import build, cast
from .move.places import device_of
from .tensor.lazy import LazyTensor
from .tensor.wrapping import as_lazy

MAX_NAMED = 20  # keys in an error; torch names all, of which nobody finds the end


class LoadReport(NamedTuple):
    """What did not match, as torch's load_state_dict reports it, and what still has no data."""

    missing_keys: list[str]
    unexpected_keys: list[str]
    left_on_meta: list[str]  # parameters and buffers that no checkpoint held, and no model could compute


class _Place(NamedTuple):
    """Where a module keeps a parameter or buffer."""

    table: dict[str, torch.Tensor | None]  # module._parameters or module._buffers
    name: str
    key: str
    is_saved: bool  # part of the state dict: not a non-persistent buffer


@checked
def load_into(module: nn.Module, ckpt: Mapping[str, Any], device: Any = None, strict: bool = True) -> LoadReport:
    """Fill a module's parameters and buffers from lazy tensors, in the checkpoint's order, in place.

    Reads every tensor once, straight into its parameter: host memory grows by the module and a scratch block. A
    parameter keeps its dtype (values are cast on the way), its requires_grad and its ties; on the meta device it is
    replaced by one with memory. Of DTensor parameters only this rank's part is read. Keys and shapes are checked before
    the first byte moves. Buffers that no checkpoint holds (rotary tables) are computed on meta modules of transformers,
    as from_pretrained computes them; for others a log line says what to write.

    >>> import torch, lazysd
    >>> with torch.device("meta"):
    ...     module = torch.nn.Linear(3, 2, bias=False)
    >>> lazysd.load_into(module, {"weight": lazysd.from_torch(torch.ones(2, 3))})
    LoadReport(missing_keys=[], unexpected_keys=[], left_on_meta=[])
    >>> module.weight.sum().item()
    6.0

    Args:
        module: any module; build large ones under `torch.device("meta")`.
        ckpt: a Checkpoint (or mapping of lazy tensors) with the module's keys; convert it first where they differ.
        device: where parameters end up. None leaves them where they are, and puts those on meta on the CPU.
        strict: raise where keys are missing or unexpected, instead of reporting them.

    Returns:
        LoadReport. A tied parameter is missing only if none of its names is in the checkpoint.

    Raises:
        RuntimeError: missing or unexpected keys (strict), or shapes that differ, in torch's words; nothing has moved.
            Where the module's keys are those of another layout of the checkpoint's family, the message names it.
        LayoutError: the checkpoint holds different tensors under the names of one tied parameter.
    """
    check_whole(ckpt, "load")
    places = list(_places(module))
    by_key = {place.key: place for place in places if place.is_saved}
    wanted = {key: ckpt[key] for key in ckpt if key in by_key}
    filled = {id(_held(by_key[key])) for key in wanted}
    missing = [key for key, place in by_key.items() if key not in wanted and id(_held(place)) not in filled]
    unexpected = [key for key in ckpt if key not in by_key]
    _check(module, by_key, ckpt, missing if strict else [], unexpected if strict else [])

    replaced = _allocate(places, filled, None if device is None else device_of(device))
    for keys in _by_memory(by_key, wanted):
        place = by_key[keys[0]]
        target = replaced.get(id(_held(place)), _held(place))
        node = wanted[keys[0]] if len(keys) == 1 else _agreeing(keys, wanted, target)
        if isinstance(node, LazyTensor):
            node.materialize(out=target)
        else:
            with torch.no_grad():
                target.copy_(node)
    for place in places:  # last: a failed read leaves no parameter without data
        place.table[place.name] = replaced.get(id(_held(place)), _held(place))
    buffers.compute(module, None if device is None else torch.device(device))
    left = [place.key for place in places if _held(place).is_meta]
    return LoadReport(missing, unexpected, left)


def _places(module: nn.Module) -> Iterator[_Place]:
    """Every place that holds a tensor, in the order of state_dict(); tied tensors have several."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        volatile = owner._non_persistent_buffers_set
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    saved = table is owner._parameters or name not in volatile
                    yield _Place(table, name, dot + name, saved)


def _by_memory(by_key: Mapping[str, _Place], wanted: Mapping[str, Any]) -> list[list[str]]:
    """The wanted keys, those of one tensor (or of one stretch of memory) together, by the first of them."""
    groups: dict[Any, list[str]] = {}
    for key in wanted:
        tensor = _held(by_key[key])
        where: Any = id(tensor)
        if type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta and tensor.numel():
            where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        groups.setdefault(where, []).append(key)
    return list(groups.values())


def _agreeing(keys: list[str], wanted: Mapping[str, Any], target: torch.Tensor) -> LazyTensor:
    """What a tied parameter is filled with: the tensors of all its names, which have to be equal."""
    code = dtypes.from_torch(target.dtype)
    hint = "but the module keeps one tensor for both; drop() the key that is not meant, or untie the module"
    return build(Agree(tuple(keys), hint), [cast(as_lazy(wanted[key], at_once=True), code) for key in keys])


def _held(place: _Place) -> torch.Tensor:
    tensor = place.table[place.name]
    assert tensor is not None
    return tensor


def _check(
    module: nn.Module,
    by_key: Mapping[str, _Place],
    ckpt: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
) -> None:
    problems = []
    for what, keys in (("Missing", missing), ("Unexpected", unexpected)):
        if keys:
            names = ", ".join(f'"{key}"' for key in keys[:MAX_NAMED])
            more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
            problems.append(f"{what} key(s) in state_dict: {names}{more}. ")
    for key, node in ((key, ckpt[key]) for key in ckpt if key in by_key):
        expected = _held(by_key[key]).shape
        if tuple(node.shape) != tuple(expected):
            problems.append(
                f"size mismatch for {key}: copying a param with shape {torch.Size(node.shape)} from checkpoint, "
                f"the shape in current model is {expected}."
            )
    if problems:
        if (name := _fitting_layout(by_key, ckpt)) is not None:
            problems.append(f'The module has the keys of layout "{name}": load ckpt.convert("{name}") instead.')
        lines = "\n\t".join(problems)
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{lines}")


def _fitting_layout(by_key: Mapping[str, _Place], ckpt: Mapping[str, Any]) -> str | None:
    """The layout in which a checkpoint has the module's keys and shapes, tied names aside; None where none has."""
    convert, family = (getattr(ckpt, name, None) for name in ("convert", "family"))  # a Checkpoint has both
    if convert is None or family is None:
        return None
    for layout in layouts.all_layouts(family):
        try:
            made = convert(layout.name)
        except LazysdError:
            continue
        held = {id(_held(by_key[key])) for key in made if key in by_key}
        fits = all(key in by_key and tuple(node.shape) == tuple(_held(by_key[key]).shape) for key, node in made.items())
        if fits and all(id(_held(place)) in held for place in by_key.values()):
            return layout.name
    return None


def _allocate(places: list[_Place], filled: set[int], device: torch.device | None) -> dict[int, torch.Tensor]:
    """Tensors with memory on `device` for those that lack it: id of the old one -> the new one."""
    replaced: dict[int, torch.Tensor] = {}
    for place in places:
        old = _held(place)
        is_filled = id(old) in filled
        if id(old) in replaced or (old.is_meta and not is_filled):
            continue
        goal = device or (torch.device("cpu") if old.is_meta else old.device)
        if old.device == goal or goal == torch.device(old.device.type):  # "cuda" is any of them
            continue
        with torch.no_grad():
            new = torch.empty_like(old, device=goal) if is_filled else old.detach().to(goal)
        replaced[id(old)] = _like(old, new)
    return replaced


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` as the kind of tensor that `old` is: a parameter with its attributes, or a plain buffer."""
    if not isinstance(old, nn.Parameter):
        return new
    plain = type(new) is torch.Tensor
    made = torch.Tensor._make_subclass(type(old), new, old.requires_grad) if plain else nn.Parameter(new)
    made.requires_grad_(old.requires_grad)
    if plain:
        made.__dict__.update(old.__dict__)
    return made
