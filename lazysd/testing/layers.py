"""Which keys stand together in a layer: what a strategy draws is a checkpoint that some program could have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..layouts import Layout, Rule, parse_key


def leave_out(entries: dict[str, Any], renaming: Sequence[Rule], known: Sequence[Layout]) -> None:
    """What no checkpoint has: a layer both with experts and without, or neither; and keys that some layout refuses."""
    bound = sorted(
        (rule for rule in renaming if rule.where), key=lambda rule: rule.where == rule.hf or "..." not in rule.axes
    )
    templates = {rule.hf: parse_key(rule.hf) for rule in bound}
    experts = [key for layout in known if layout.name == "hf" for key in layout.own_keys]
    for layout in known:
        refused = [parse_key(text) for text in layout.refuses if "{" in text]
        claimed = [*experts, *(parse_key(rule.hf) for rule in layout.rules if not rule.afters)]
        for key in [key for key in entries if any(template.match(key) is not None for template in refused)]:
            if all(template.match(key) is None for template in claimed):
                del entries[key]
    for hf, template in templates.items():  # the first is the layer with experts
        wheres = [parse_key(rule.where) for rule in bound if rule.hf == hf]
        for key in list(entries):
            if (fields := template.match(key)) is None:
                continue
            stand = [found for where in wheres if (found := where.format(fields)) in entries]
            for other in stand[1:]:
                del entries[other]
            if not stand:
                entries.pop(key, None)
