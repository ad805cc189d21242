"""What a checkpoint says of itself where it is the last value of a cell: text of a few lines, HTML."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import Any

from . import layouts
from .display.adapters import adapter_facts
from .display.html import to_html
from .display.layers import irregular_layers
from .display.page import cut
from .errors import LazysdError
from .parameters import parameters_of
from .peft.holding import adapter_summary
from .sizes import format_nbytes
from .stores.strict_json import printable

MAX_REMARKS = 5  # lines under the first one of a repr
MAX_WIDTH = 160


class Showing:
    """The part of Checkpoint that is looked at. Reads no tensor data."""

    @cached_property
    def _layout_shown(self) -> str:
        whole: Any = self
        try:
            layout, family = whole.layout, whole.family
        except LazysdError:
            return "mixed layouts"
        if layout is None and (found := layouts.dense_layout(whole._quantised.plain, whole.config, family)) is not None:
            layout, family = found
        return f"{layout} ({family})" if layout and family else layout or "no known layout"

    @cached_property
    def _parameters_shown(self) -> str:
        whole: Any = self
        return str(parameters_of(whole, whole.config, not whole.facts.absent))

    @cached_property
    def _remarks_shown(self) -> list[tuple[str, str]]:
        """What is irregular, and what whoever uses it should know."""
        whole: Any = self
        irregular = [] if whole.facts.absent else irregular_layers(whole)
        uneven = (("uneven", sentence) for sentence in irregular)
        return list(chain(uneven, (("note", remark) for remark in whole.remarks)))

    def __repr__(self) -> str:
        whole: Any = self
        where = f", {whole.path}" if whole.path else ""
        part = "a part: " if whole.facts.absent else ""
        count = f"{part}{len(whole)} tensor{'s' if len(whole) != 1 else ''}"
        size = f"{self._parameters_shown}, {format_nbytes(whole.nbytes)}"
        lines = [f"Checkpoint({count}, {size}, {self._layout_shown}{printable(where)})"]
        said = self._remarks_shown
        lines += [f"  {word}: {cut(printable(sentence), MAX_WIDTH)}" for word, sentence in said[:MAX_REMARKS]]
        lines += [f"  … and {len(said) - MAX_REMARKS} more remarks"] if len(said) > MAX_REMARKS else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        whole: Any = self
        about: list[tuple[str, object]] = [("layout", self._layout_shown)]
        if whole.adapter is not None or any(".lora_" in key for key in whole):
            about += adapter_facts(adapter_summary(whole))
        elif why := layouts.explain(whole._quantised.plain, whole.config, whole.facts.family, whole.facts.layout):
            about.append(("because", why))
        about.append(("weights", self._parameters_shown))
        about += [("path", str(whole.path))] if whole.path else []
        return to_html(
            self, "Part of a checkpoint" if whole.facts.absent else "Checkpoint", [*about, *self._remarks_shown]
        )
