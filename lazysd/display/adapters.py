"""What an adapter holds, as facts for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sizes import format_nbytes
from ..stores.strict_json import printable


def adapter_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of what peft.holding.adapter_summary says, each under the word "adapter" or none."""
    scale = "alpha / sqrt(rank)" if found["rslora"] else "alpha / rank"
    experts = f", {_said(found['num_experts'])} experts" if found["num_experts"] is not None else ""
    written = f"peft {_said(found['peft_version'])}" if found["peft_version"] is not None else "no peft_version"
    targets = [*(found.get("wrapped_parameters") or ()), *(found.get("wrapped_modules") or ())]
    nothing = f"layout {found['layout']}, of no PEFT generation"
    if found["layout"] is None:
        nothing = "generation undecided" if found["problem"] else "wraps no experts"
    kind = _said(found["kind"])
    if found["rank"] is not None or found["alpha"] is not None:
        kind += f" of rank {_said(found['rank'])}, alpha {_said(found['alpha'])}, scale {scale}"
    lines = [
        f"{kind}{experts}",
        f"{_said(found['generation'] or nothing)} ({written})",
        f"targets {_said(targets or found['target_parameters'] or found['target_modules'])}",
        f"{found['tensors']} tensors, {format_nbytes(found['nbytes'])}",
        *([f"problem: {printable(found['problem'])}"] if found["problem"] else []),
    ]
    return list(zip(("adapter", *[""] * (len(lines) - 1)), lines, strict=True))


def _said(value: Any) -> str:
    several = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return printable(several) if value not in (None, []) else "unknown"
