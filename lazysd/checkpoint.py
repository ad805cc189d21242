"""Checkpoint: a mapping from keys to lazy tensors. Open, select, convert, plan, save, verify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import layouts
from .arguments import checked
from .errors import MissingTensorError
from .facts import Facts
from .measuring import Measuring
from .nearest import did_you_mean
from .peft.config import AdapterConfig
from .peft.converting import convert_adapter
from .peft.generation import check_stated, decider, detect
from .quant import lists, travel
from .showing import Showing
from .stores.strict_json import show
from .tensor.lazy import LazyTensor
from .tensor.whole import LazyTensors
from .tensor.wrapping import as_lazy, takes_key

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .save.plan import Plan
    from .stores.base import File


class Checkpoint(Measuring, Showing, Mapping[str, LazyTensor]):
    """A state dict that has not been read: keys in file order, values lazy.

    Everything that returns a Checkpoint (`select`, `drop`, `rename`, `map`, `|`, `convert`) is a view over the same
    files and reads no tensor data.
    """

    @checked
    def __init__(self, tensors: Mapping[str, LazyTensor], facts: Facts | None = None, **stated: Any):
        """A checkpoint of these tensors.

        Args:
            tensors: key -> LazyTensor, in the order to keep.
            facts: what is known beside them; nothing by default.
            stated: single fields of Facts, e.g. config={"num_experts": 8}, put over `facts`.
        """
        self._held = tensors if isinstance(tensors, LazyTensors) else dict(tensors)
        self.facts = replace(facts or Facts(), **stated)

    @property
    def _tensors(self) -> dict[str, LazyTensor]:
        return self._held if isinstance(self._held, dict) else self._held.made

    def __getitem__(self, key: str) -> LazyTensor:
        try:
            return self._tensors[key]
        except (KeyError, TypeError):
            pass
        hint = self.facts.lacks(key) or did_you_mean(key, self._tensors) if isinstance(key, str) else ""
        raise MissingTensorError(
            f"no tensor {show(key)} among the {len(self)} of {self.path or 'this checkpoint'}{hint}"
        )

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(node.nbytes for node in self._tensors.values())

    @cached_property
    def _detected(self) -> layouts.Layout | None:
        if self.facts.layout is not None and self.facts.family is not None:
            return layouts.get(self.facts.layout, self.facts.family)
        with self._quantised.explained() as load:
            return detect(load.plain, self.config, self.facts.family, self.facts.adapter)

    @cached_property
    def _quantised(self) -> travel.Load:
        return travel.load(self._tensors, self.config)

    @property
    def layout(self) -> str | None:
        """The layout's name: given, or detected from keys. None where no key belongs to a known layout."""
        return self._detected.name if self._detected else self.facts.layout

    @property
    def family(self) -> str | None:
        """The model family whose layout tables apply."""
        return self._detected.family if self._detected else self.facts.family

    @property
    def path(self) -> Path | str | None:
        """The file or folder that was opened."""
        return self.facts.path

    @property
    def files(self) -> tuple[File, ...]:
        """The source files that these tensors come from."""
        return self.facts.files

    @property
    def config(self) -> dict[str, Any] | None:
        """config.json, where there is one."""
        return self.facts.config

    @property
    def metadata(self) -> Mapping[str, str]:
        """`__metadata__` of the files."""
        return self.facts.metadata

    @property
    def adapter(self) -> AdapterConfig | None:
        """What adapter_config.json says, where there is one."""
        return self.facts.adapter  # type: ignore[no-any-return]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What whoever uses the checkpoint should know, one sentence each."""
        return self.facts.remarks

    def like(self, tensors: Mapping[str, LazyTensor], **changes: Any) -> Checkpoint:
        """Other tensors with the same facts, but for `changes` (fields of Facts). Reads nothing."""
        return Checkpoint(tensors, self.facts, **changes)

    @checked
    def select(self, *globs: str) -> Checkpoint:
        """The keys that match any of the patterns (`*`, `?`, `[..]`, as in file names), as a view."""
        return self._kept(lambda key: any(fnmatchcase(key, glob) for glob in globs))

    @checked
    def drop(self, *globs: str) -> Checkpoint:
        """The keys that match none of the patterns, as a view."""
        return self._kept(lambda key: not any(fnmatchcase(key, glob) for glob in globs))

    def _kept(self, keep: Callable[[str], bool]) -> Checkpoint:
        absent = self.facts.absent_in(lambda key: key if keep(key) else None)
        return self.like({key: node for key, node in self._tensors.items() if keep(key)}, absent=absent)

    @checked
    def rename(self, names: Mapping[str, str] | Callable[[str], str]) -> Checkpoint:
        """Other names for keys, by a mapping (other keys stay) or a function. ValueError where two names meet."""
        new_name = names if callable(names) else lambda key: names.get(key, key)
        renamed: dict[str, LazyTensor] = {}
        for key, node in self._tensors.items():
            name = new_name(key)
            if name in renamed:
                raise ValueError(f"rename would give two tensors the name {name!r}")
            renamed[name] = node
        return self.like(renamed, absent=self.facts.absent_in(new_name))

    @checked
    def map(self, function: Callable[..., Any], with_key: bool | None = None) -> Checkpoint:
        """Each tensor replaced by what `function` makes of it; torch tensors are wrapped.

        >>> import torch, lazysd
        >>> ckpt = lazysd.open("tests/golden/qwen3_moe_tiny")
        >>> ckpt.map(lambda t, dtype=torch.float32: t.to(dtype)).nbytes == 2 * ckpt.nbytes
        True

        Args:
            function: called as function(tensor), or as function(key, tensor) where its first parameter is named `key`.
            with_key: True or False to say which of the two, whatever the names are.

        Raises:
            TypeError: a function of two required arguments whose first one is not named `key`.
        """
        wants_key = takes_key(function) if with_key is None else with_key
        return self.like({k: as_lazy(function(k, t) if wants_key else function(t)) for k, t in self.items()})

    @checked
    def __or__(self, other: Mapping[str, Any]) -> Checkpoint:
        """The union; where both hold a key, `other` wins, as with dicts."""
        held = {**self._tensors, **{key: as_lazy(value) for key, value in other.items()}}
        facts = self.facts.joined(other.facts) if isinstance(other, Checkpoint) else self.facts
        return Checkpoint(held, facts, absent=facts.absent_in(lambda key: None if key in held else key))

    @checked
    def convert(
        self,
        to: str,
        *,
        source: str | None = None,
        family: str | None = None,
        config: Mapping[str, Any] | None = None,
        merge_rank: bool = False,
        mesh: DeviceMesh | None = None,
    ) -> Checkpoint:
        """The same tensors in another layout, as a view: a graph is built, nothing is read.

        Args:
            to: name of a registered layout (`lazysd.layouts.names()`).
            source: layout of this checkpoint, if detection should not decide.
            family: model family, if neither config.json nor the keys say.
            config: sizes that config.json would give, e.g. {"num_experts": 128}; for adapters also what
                adapter_config.json would say, e.g. {"r": 8, "lora_alpha": 16}.
            merge_rank: keep per-expert LoRA whose gate and up do not share a lora_A, exactly, at twice the rank.
            mesh: with dimensions `ep`, `ep_shard`, `ep_replicate`: experts become DTensors, and a rank reads its own.

        Raises:
            LayoutError: keys or shapes do not fit; nothing is dropped or guessed.
        """
        self.facts.check_whole("convert")
        adapter = (self.facts.adapter or AdapterConfig()).stating(config)
        known = self.facts.layout if family in (None, self.facts.family) else None
        evidence: Any = {"config": self.config, "stated": config, "decide": decider(adapter)}
        evidence |= {"source": source or known, "family": family or self.facts.family, "trusted": source is None}
        with self._quantised.restated(self.config, config).explained() as load:
            choice = layouts.choose(load.plain, to, where=self.path, **evidence)
            if source or known:
                check_stated(choice.origin, load.plain, adapter, choice.config)
            load.check(choice)
            made, says = convert_adapter(load.plain, choice, adapter, merge_rank)
            tensors = load.carried(made, choice)
        if mesh is not None:
            from .mesh.spread import spread_experts

            tensors = spread_experts(tensors, choice.target, mesh, load.settings)
        changes: dict[str, Any] = {"layout": choice.target.name, "family": choice.target.family}
        changes |= lists.after(self.facts, choice, load.plain, load.weights, made)
        if self.facts.adapter is not None or says.values:
            changed = says.files() if says != self.facts.adapter or not self.is_adapter else {}
            changes |= {"adapter": says, "json_files": {**changes["json_files"], **changed}}
        return self.like(tensors, **changes)

    @checked
    def plan(
        self,
        max_shard_size: int | str = "5GB",
        max_memory: int | str = "128MB",
        workers: int | None = None,
        format: str = "safetensors",
    ) -> Plan:
        """What a save would do, proved before any byte moves. Raises LayoutError, MemoryBudgetError."""
        from .save.plan import plan_checkpoint

        return plan_checkpoint(self._tensors, self.facts, max_shard_size, max_memory, workers, format)

    @checked
    def save(
        self,
        dst: str | os.PathLike[str],
        max_shard_size: int | str = "5GB",
        max_memory: int | str = "128MB",
        workers: int | None = None,
        overwrite: bool = False,
        resume: bool = True,
        progress: bool | Callable[[int, int], None] | None = None,
        format: str = "safetensors",
    ) -> Plan:
        """Write the checkpoint, streaming; `dst` appears, complete, in one rename.

        Args:
            dst: the folder to make, or one file where it ends in `.safetensors`; over or inside the source is refused.
            max_shard_size: bytes of tensors a shard holds at most, or "5GB"; one larger tensor gets its own shard.
                Adapters are one file, as PEFT reads no other.
            max_memory: bytes the process may grow by, or "128MB".
            workers: threads; None uses the CPUs there are, as far as max_memory allows.
            overwrite: replace an existing `dst`; it stays as it is until the new one is complete.
            resume: keep the finished shards of an interrupted run of the same plan.
            progress: called as progress(done_nbytes, total_nbytes), or True for a bar on stderr.
            format: "safetensors", or "dcp": a folder that torch.distributed.checkpoint.load reads.

        Returns:
            The plan that was carried out.

        Raises:
            OutputExistsError, NoSpaceError, MemoryBudgetError, SourceChangedError, ReadError, ResumeMismatchError.
        """
        from .save.saving import save

        return save(self, dst, max_shard_size, max_memory, workers, overwrite, resume, progress, format)

    @property
    def is_adapter(self) -> bool:
        """Whether this is an adapter (adapter_model.safetensors beside adapter_config.json)."""
        return self.facts.is_adapter

    def close(self) -> None:
        """Close the files. Tensors handed out stay valid; lazy tensors can no longer be read."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
