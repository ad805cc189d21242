"""How adapters call a family's expert parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ..layouts.rule import Layout


@dataclass(frozen=True)
class LoraNames:
    """How adapters call a family's expert parameters. PEFT wraps `inner` first, so that `outer` wraps the wrapper."""

    experts: str  # key template of the experts' module, up to its last dot
    inner: str = "gate_up_proj"  # its keys carry `base_layer.` where both parameters are wrapped
    outer: str = "down_proj"
    inner_words: tuple[str, ...] = ("gate_proj", "up_proj")  # what `inner` is made of, expert by expert

    @property
    def gated(self) -> bool:
        """Whether `inner` is gate beside up."""
        return len(self.inner_words) > 1


def names_in(layout: Layout) -> LoraNames | None:
    """What a layout calls them; None where it has no form for adapters of experts."""
    return layout.companion if isinstance(layout.companion, LoraNames) else None
