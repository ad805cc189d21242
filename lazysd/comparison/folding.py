"""What moved, folded: a row for each layer and module, all experts of a layer in one; as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

from ..display.text import printable, ranges
from .magnitude import Magnitude, joined

SORTS = ("relative", "max", "changed", "cosine", "name")
_BAR = 32  # characters of the longest bar
_MAX_ROWS = 100  # of an HTML table


class Moved(NamedTuple):
    """The tensors of one row."""

    name: str  # printable; numbers after the layer's as ranges
    keys: tuple[str, ...]
    magnitude: Magnitude


def by_layer(magnitudes: Mapping[str, Magnitude], sort: str = "relative") -> list[Moved]:
    """Rows of the tensors that changed. A row holds its unchanged members as well, for it is its whole that moved."""
    if sort not in SORTS:
        raise ValueError(f"sort is one of {', '.join(SORTS)}, not {sort!r}")
    groups: dict[tuple[str, ...], list[tuple[str, list[int]]]] = {}
    for key in magnitudes:
        frame, numbers = _frame(key)
        groups.setdefault(frame, []).append((key, numbers))
    rows = []
    for frame, members in groups.items():
        whole = joined([magnitudes[key] for key, _ in members])
        if whole.num_changed:
            places = zip(*(numbers for _, numbers in members), strict=True)
            rows.append(Moved(_name(frame, places), tuple(key for key, _ in members), whole))
    return sorted(rows, key=lambda row: _rank(row, sort))


def _rank(row: Moved, sort: str) -> tuple[float, str]:
    found = row.magnitude
    cosine = found.cosine
    rank = {
        "relative": -found.relative,
        "max": -found.max_delta,
        "changed": -found.num_changed / max(1, found.num_elements),
        "cosine": 2.0 if cosine is None else cosine,
        "name": 0.0,
    }[sort]
    return rank, row.name


def _frame(key: str) -> tuple[tuple[str, ...], list[int]]:
    """A key with its numbers after the first one taken out: layer 2's experts are one row, layer 3's another."""
    words, numbers, seen = [], [], False
    for word in key.split("."):
        plain = word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word
        if plain and seen:
            words.append("\0")
            numbers.append(int(word))
        else:
            words.append(word)
        seen = seen or plain
    return tuple(words), numbers


def _name(frame: tuple[str, ...], places: Iterable[tuple[int, ...]]) -> str:
    numbers = iter(places)
    shown = []
    for word in frame:
        if word != "\0":
            shown.append(printable(word))
            continue
        members = set(next(numbers))
        shown.append(f"{{{ranges(members)}}}" if len(members) > 1 else str(members.pop()))
    return ".".join(shown)


def cells(row: Moved) -> tuple[str, ...]:
    """relative, max |delta|, cosine, changed, and what is not finite."""
    found = row.magnitude
    cosine = "-" if found.cosine is None else f"{found.cosine:.6f}"
    odd = [f"{a} and {b} {name}" for name, (a, b) in (("NaN", found.num_nan), ("inf", found.num_inf)) if a or b]
    share = f"{found.num_changed:,} of {found.num_elements:,}"
    return (f"{found.relative:.3g}", f"{found.max_delta:.3g}", cosine, share, ", ".join(odd))


HEADINGS = ("relative", "max |Δ|", "cosine", "changed", "")


def text_table(rows: list[Moved], top: int | None, bars: bool) -> str:
    """A line a row under a line of headings; empty where nothing moved."""
    if not rows:
        return ""
    shown = rows if top is None else rows[:top]
    if bars:
        lines = _bars(shown)
    else:
        table = [("moved", *HEADINGS), *((row.name, *cells(row)) for row in shown)]
        widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in table
        ]
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} rows that moved less (--top)")
    return "\n".join(line.rstrip() for line in lines)


def _bars(rows: list[Moved]) -> list[str]:
    most = max((row.magnitude.relative for row in rows if row.magnitude.relative < float("inf")), default=0.0)
    width = max(len(row.name) for row in rows)
    numbers = [f"{row.magnitude.relative:.3g}" for row in rows]
    digits = max(map(len, numbers))
    return [
        f"{row.name:{width}} | {number:>{digits}} {'█' * max(1, round(_BAR * min(1.0, _part(row, most))))}"
        for row, number in zip(rows, numbers, strict=True)
    ]


def _part(row: Moved, most: float) -> float:
    return row.magnitude.relative / most if most else 1.0


def html_table(headline: str, rows: list[Moved], details: list[str]) -> str:
    """The same for a notebook: a table with bars, without a script; names are escaped."""
    most = max((row.magnitude.relative for row in rows if row.magnitude.relative < float("inf")), default=0.0)
    left, right = 'style="text-align:left;font-family:monospace"', 'style="text-align:right"'
    body = []
    for row in rows[:_MAX_ROWS]:
        percent = round(100 * min(1.0, _part(row, most)))
        bar = f'<div style="width:{percent}px;height:0.7em;background:currentColor;opacity:0.5"></div>'
        numbers = "".join(f"<td {right}>{escape(cell)}</td>" for cell in cells(row))
        body.append(f"<tr><td {left}>{escape(row.name)}</td><td>{bar}</td>{numbers}</tr>")
    head = "".join(f"<th {right}>{escape(name)}</th>" for name in HEADINGS)
    table = f"<table><thead><tr><th {left}>moved</th><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    more = f"<p>… and {len(rows) - _MAX_ROWS} more rows</p>" if len(rows) > _MAX_ROWS else ""
    below = f"<pre>{escape(chr(10).join(details))}</pre>" if details else ""
    return f"<div><p>{escape(headline)}</p>{table if rows else ''}{more}{below}</div>"
