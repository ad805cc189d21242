"""Write docs/families.md from the registry that `lazysd layouts` shows; a test keeps it true.

python scripts/families_page.py > docs/families.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from lazysd import layouts
from lazysd.layouts import drawing

HEAD = """# Families

Made from the registry by `scripts/families_page.py`; `lazysd layouts` shows the same. {families} families, {types}
values of `model_type`, {pairs} layouts. Each layout converts to every other of its family, both ways.

| mark | the table was held against |
|---|---|
| ● | the real program: what it writes was compared, tensor by tensor, with what lazysd makes |
| ◐ | header lists of published checkpoints: names and shapes |
| ○ | the program's source or documented names, read and not run: **no real other side** |
| – | nothing: the dialect has no form for the family; why stands below, and `lazysd layouts FAMILY` says it too |

| family | model types | {columns} | others |
|---|---|{rules}|---|
"""
SHOWN = ("hf", "hf-fused", "nemo", "torchtitan", "vllm", "megatron")
LORA = """
LoRA adapters have layouts of their own (peft-0.18, peft-0.19, peft-per-expert) for {count} of these families:
{names}. Files that PEFT 0.18.1 and 0.21.2 and nemo-automodel 0.7.0 wrote were compared for qwen3_moe; the others
differ in key names alone. Where PEFT itself is asked, see `tests/test_merge.py`.

## What each program was

{sources}

## Why there are no others

{reasons}
"""


def mark(source: str) -> str:
    """How well a table is proved, by what it says of its source."""
    if "read, not run" in source:
        return "○"
    return "◐" if "published" in source else "●"


def page() -> str:
    """The families, as Markdown."""
    data = {name: drawing.of_family(name)["layouts"] for name in sorted(drawing.overview()["families"])}
    types = drawing.overview()["families"]
    shown = {name: {k: v for k, v in found.items() if not k.startswith("peft")} for name, found in data.items()}
    text = HEAD.format(
        families=len(data),
        types=sum(len(found["model_types"]) for found in types.values()),
        pairs=sum(map(len, data.values())),
        columns=" | ".join(SHOWN),
        rules="|".join("---" for _ in SHOWN),
    )
    for name, found in shown.items():
        cells = [mark(found[dialect]["source"]) if dialect in found else "–" for dialect in SHOWN]
        others = [f"{other} {mark(said['source'])}" for other, said in found.items() if other not in SHOWN]
        row = (name, ", ".join(types[name]["model_types"]), *cells, ", ".join(others))
        text += f"| {' | '.join(row)} |\n"
    lora = [name for name, found in data.items() if any(layout.startswith("peft") for layout in found)]
    return text + LORA.format(count=len(lora), names=", ".join(lora), sources=_sources(shown), reasons=_reasons())


def _sources(shown: dict[str, dict[str, dict[str, str]]]) -> str:
    said = ((dialect, said["source"], name) for name, found in shown.items() for dialect, said in found.items())
    return _table("held against", said)


def _reasons() -> str:
    """Why families lack dialects, but for those of adapters."""
    found = ((name, drawing.of_family(name)["not"]) for name in sorted(drawing.overview()["families"]))
    said = ((d, why.partition(": ")[2], name) for name, reasons in found for d, why in reasons.items())
    return _table("why not", (row for row in said if row[0] in SHOWN))


def _table(title: str, said: Iterable[tuple[str, str, str]]) -> str:
    """(layout, text, family) as Markdown: a row for each text."""
    rows: dict[str, dict[str, list[str]]] = {}
    for layout, text, name in said:
        rows.setdefault(layout, {}).setdefault(text, []).append(name)
    lines = [f"| layout | {title} | families |", "|---|---|---|"]
    for layout in dict.fromkeys(name for name in [*layouts.dialects(), *rows] if name in rows):
        for text, names in rows[layout].items():
            whose = ", ".join(names) if len(names) <= 6 else f"{len(names)} of them"
            lines.append(f"| {layout} | {text} | {whose} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
