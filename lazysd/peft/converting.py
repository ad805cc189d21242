"""Adapters from one layout to another: the engine's rules, and around them what PEFT folds, nests and states."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LayoutError
from ..graph.building import many_nodes
from ..layouts import converting as engine
from ..layouts.choosing import Choice
from ..layouts.rule import Layout
from ..tensor.lazy import LazyTensor
from .config import AdapterConfig, adapter_config_for
from .folding import fold_sizes, nest, unnest
from .pairs import adapted, check_pairs

NO_ADAPTER = AdapterConfig()


@many_nodes()
def convert_adapter(
    tensors: Mapping[str, LazyTensor], choice: Choice, adapter: AdapterConfig, merge_rank: bool = False
) -> tuple[dict[str, LazyTensor], AdapterConfig]:
    """A checkpoint or an adapter in another layout, and what adapter_config.json has to say about it. Reads nothing.

    Args:
        tensors: keys in the origin.
        choice: from which layout to which, and by which sizes.
        adapter: what adapter_config.json says, where there is one: ranks unfold what PEFT folds.
        merge_rank: per-expert LoRA whose gate and up differ becomes one LoRA of twice the rank.
    """
    origin, target, sizes, firsts = choice.origin, choice.target, choice.sizes, choice.firsts
    if not merge_rank and not any(".lora_" in key for key in tensors):
        return engine.convert(tensors, origin, target, sizes, firsts), adapter
    hub = to_hub(tensors, origin, sizes, adapter, merge_rank, firsts)
    held = adapted(hub, origin, adapter, merge_rank)
    stays = origin is target and not merge_rank  # gate and up need not share a lora_A where they stay apart
    made = dict(tensors) if stays else unnest(engine.from_hub(hub, target, sizes, firsts), target)
    return made, adapter_config_for(target, adapter, held, origin)


def to_hub(
    tensors: Mapping[str, LazyTensor],
    origin: Layout,
    sizes: Mapping[str, int],
    adapter: AdapterConfig = NO_ADAPTER,
    merge_rank: bool = False,
    firsts: Mapping[str, int] | None = None,
) -> Mapping[str, LazyTensor]:
    """To the hub: Hugging Face's per-expert weights, NeMo's grouped LoRA. Every factor has its partner, or an error."""
    if merge_rank and not origin.merged:
        raise LayoutError(
            f"merge_rank keeps gate and up apart that do not share a lora_A; in layout {origin.name!r} they share it"
        )
    if not origin.is_hub:
        tensors = nest(tensors, origin, adapter)
        sizes = {**sizes, **fold_sizes(tensors, origin, sizes, adapter)}
    hub = engine.to_hub(tensors, origin, sizes, firsts, merge_rank)
    check_pairs(hub, origin)
    return hub
