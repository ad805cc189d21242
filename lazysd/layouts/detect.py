"""Which layout and family a set of keys is in: by the keys, and for PEFT's two generations by evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import LayoutError
from ..tensor.lazy import LazyTensor
from .adapter import AdapterConfig
from .generation import decide
from .lora import GENERATIONS
from .registry import all_layouts
from .rule import Layout


def detect(
    keys: Iterable[str],
    config: Mapping[str, object] | None = None,
    family: str | None = None,
    adapter: AdapterConfig | None = None,
) -> Layout | None:
    """The first layout that has a rule for every key that belongs to some layout; None where no key does.

    The generations of PEFT write the very same keys and are told apart by evidence, see generation.py; the shapes it
    may need are there if `keys` is a mapping to lazy tensors.

    Raises LayoutError where keys of several layouts of a family stand side by side, or evidence is lacking.
    """
    tensors = keys if isinstance(keys, Mapping) else {}
    keys = list(keys)
    model_type = config.get("model_type") if config else None
    candidates = all_layouts(family)
    if family is None and any(layout.family == model_type for layout in candidates):
        candidates = [layout for layout in candidates if layout.family == model_type]
    seen: dict[str, str] = {}  # templates that some key matches, and the first such key
    for template in {template.text: template for layout in candidates for template in layout.own_keys}.values():
        first = next((key for key in keys if template.match(key)), None)
        if first is not None:
            seen[template.text] = first
    if not seen:
        return None
    fitting = [layout for layout in candidates if {t.text for t in layout.own_keys} >= set(seen)]
    if not fitting:
        shown = "; ".join(f"{_writer(text, candidates)}: {key}" for text, key in seen.items())
        raise LayoutError(
            f"keys of several layouts stand side by side ({shown}); say which one it is (source=, --from)"
        )
    ways = {tuple(rule for rule in layout.rules if rule.to in seen) for layout in fitting}
    if len(ways) == 1 or any(layout.family != fitting[0].family for layout in fitting):
        return fitting[0]
    if {layout.name for layout in fitting} <= set(GENERATIONS):
        return decide(fitting, {k: t for k, t in tensors.items() if isinstance(t, LazyTensor)}, adapter, config)
    shown = ", ".join(layout.name for layout in fitting)
    raise LayoutError(f"the keys fit several layouts ({shown}); say which one it is (source=, --from)")


def _writer(text: str, candidates: Iterable[Layout]) -> str:
    return next(layout.name for layout in candidates if any(t.text == text for t in layout.own_keys))
