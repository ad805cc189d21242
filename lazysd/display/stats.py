"""Stats as text and HTML: a table of many tensors, a histogram of one. Nothing here reads data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from .text import printable

_BAR = 40  # characters of the longest bar
_BLOCKS = " ▏▎▍▌▋▊▉█"
_MAX_ROWS = 200
HEADINGS = ("min", "max", "mean", "std", "zeros", "NaN", "inf")


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"


def _cells(found: Any) -> tuple[str, ...]:
    zeros = f"{100 * found.num_zeros / found.num_elements:.3g}%" if found.num_elements else "-"
    return (*map(number, (found.min, found.max, found.mean, found.std)), zeros, str(found.num_nan), str(found.num_inf))


def text_of(found: Any) -> str:
    """One tensor: its numbers, its quantiles, its histogram."""
    lines = [
        f"{name:7} {value}"
        for name, value in (
            ("shape", f"{found.dtype.lower()}{list(found.shape)}, {found.num_elements:,} elements"),
            ("min", number(found.min)),
            ("max", number(found.max)),
            ("mean", number(found.mean)),
            ("std", number(found.std)),
            ("absmax", number(found.absmax)),
            ("zeros", f"{found.num_zeros:,}"),
            ("NaN", f"{found.num_nan:,}"),
            ("inf", f"{found.num_inf:,}"),
        )
    ]
    lines += [f"{f'{100 * at:g}%':7} {number(value)}" for at, value in found.quantiles.items()]
    if found.bin_counts:
        most = max(found.bin_counts)
        edges = [number(edge) for edge in found.bin_edges[:-1]]
        width = max(map(len, edges))
        lines += ["", *(f"{e:>{width}} {bar(n / most)}" for e, n in zip(edges, found.bin_counts, strict=False))]
    return "\n".join(line.rstrip() for line in lines)


def bar(part: float) -> str:
    """A bar of a length between 0 and 1."""
    eighths = round(part * _BAR * 8) or (1 if part > 0 else 0)
    return _BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def text_of_all(found: Mapping[str, Any], keys: Iterable[str] | None = None) -> str:
    """A line a tensor."""
    rows = [("tensor", *HEADINGS), *((printable(key), *_cells(found[key])) for key in keys or found)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def html_of(found: Mapping[str, Any]) -> str:
    """A table for notebooks, without a script; names are escaped, rows are capped."""
    left, right = 'style="text-align:left;font-family:monospace"', 'style="text-align:right"'
    head = "".join(f"<th {right}>{name}</th>" for name in HEADINGS)
    keys = list(found)
    body = "".join(
        f"<tr><td {left}>{escape(printable(key))}</td>"
        + "".join(f"<td {right}>{escape(cell)}</td>" for cell in _cells(found[key]))
        + "</tr>"
        for key in keys[:_MAX_ROWS]
    )
    more = f"<p>… and {len(keys) - _MAX_ROWS} more tensors</p>" if len(keys) > _MAX_ROWS else ""
    return f"<table><thead><tr><th {left}>tensor</th>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
