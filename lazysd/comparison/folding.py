"""What moved, folded: a row for each layer and module, all experts of a layer in one; as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from sys import intern
from typing import NamedTuple

from ..display import page
from ..display.columns import MAX_PADDED, MIN_FIRST, aligned, shorten
from ..display.text import ranges
from ..stores.strict_json import printable
from .magnitude import Magnitude, joined

SORTS = ("relative", "max", "changed", "cosine", "name")
LESS = "moved less"  # of rows that are left out
_BAR = 32  # characters of the longest bar
MAX_ROWS = 100  # of an HTML table
MAX_TEXT_ROWS, MAX_TEXT_DETAILS, TEXT_WIDTH = 20, 5, 80  # of the plain text beside it


class Moved(NamedTuple):
    """The tensors of one row."""

    name: str  # printable; numbers after the layer's as ranges
    keys: tuple[str, ...]
    magnitude: Magnitude

    def __repr__(self) -> str:
        found = self.magnitude
        return (
            f"Moved({self.name!r}, {len(self.keys)} tensors, relative {found.relative:.3g}, max {found.max_delta:.3g})"
        )


def by_layer(magnitudes: Mapping[str, Magnitude], sort: str = "relative") -> list[Moved]:
    """Rows of the tensors that changed. A row holds its unchanged members as well, for it is its whole that moved."""
    if sort not in SORTS:
        raise ValueError(f"sort is one of {', '.join(SORTS)}, not {sort!r}")
    groups: dict[tuple[str | None, ...], list[tuple[str, list[int]]]] = {}
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


def _frame(key: str) -> tuple[tuple[str | None, ...], list[int]]:
    """A key with its numbers after the first one taken out: layer 2's experts are one row, layer 3's another."""
    words: list[str | None] = []
    numbers, seen = [], False
    for word in key.split("."):
        plain = word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word
        if plain and seen:
            words.append(None)
            numbers.append(int(word))
        else:
            words.append(intern(word))  # keys share most of them
        seen = seen or plain
    return tuple(words), numbers


def _name(frame: tuple[str | None, ...], places: Iterable[tuple[int, ...]]) -> str:
    numbers = iter(places)
    shown = []
    for word in frame:
        if word is not None:
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


def text_table(rows: list[Moved], top: int | None, bars: bool, width: int | None = None, rest: str = LESS) -> str:
    """A line a row under a line of headings; empty where nothing moved. Names are cut to fit `width` characters."""
    if not rows:
        return ""
    shown = rows if top is None else rows[:top]
    if bars:
        lines = _bars(shown, width)
    else:
        table = [("moved", *HEADINGS), *((row.name, *cells(row)) for row in shown)]
        if width is not None and max(map(len, aligned(table, range(1, 5)))) > width:  # shares give names more room
            table[1:] = [(row.name, *_shares(row)) for row in shown]
        lines = aligned(table, range(1, 5), width)
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} rows that {rest}")
    return "\n".join(line.rstrip() for line in lines)


def _bars(rows: list[Moved], width: int | None) -> list[str]:
    most = max((row.magnitude.relative for row in rows if row.magnitude.relative < float("inf")), default=0.0)
    numbers = [f"{row.magnitude.relative:.3g}" for row in rows]
    digits = max(map(len, numbers))
    room = None if width is None else max(MIN_FIRST, width - digits - len(" |  ") - _BAR)
    names = [row.name if room is None else shorten(row.name, room) for row in rows]
    widest = min(max(map(len, names)), MAX_PADDED if room is None else room)
    return [
        f"{name:{widest}} | {number:>{digits}} {'█' * max(1, round(_BAR * min(1.0, _part(row, most))))}"
        for name, row, number in zip(names, rows, numbers, strict=True)
    ]


def _part(row: Moved, most: float) -> float:
    return row.magnitude.relative / most if most else 1.0


def html_table(headline: str, rows: list[Moved], details: list[str]) -> str:
    """The same for a notebook: a table with bars."""
    most = max((row.magnitude.relative for row in rows if row.magnitude.relative < float("inf")), default=0.0)
    shown = [(row.name, _bar(row, most), *_html_cells(row)) for row in rows]
    table = page.table(("moved", "", *HEADINGS), shown, "row", MAX_ROWS)
    lines = "".join(f"<li>{page.shown(line.strip())}</li>" for line in details)
    below = f"<details><summary>differences</summary><ul>{lines}</ul></details>" if details else ""
    folded = text_table(rows, MAX_TEXT_ROWS, bars=False, width=TEXT_WIDTH)
    text = "\n".join(line for line in (headline, folded, *details[:MAX_TEXT_DETAILS]) if line)
    return page.frame(f"<p><b>Comparison</b>: {page.shown(headline)}</p>{table}{below}", text)


def _html_cells(row: Moved) -> tuple[object, ...]:
    """The same numbers, and what is not finite marked."""
    *numbers, odd = _shares(row)
    return (*numbers, page.alarm(odd, bool(odd)))


def _shares(row: Moved) -> tuple[str, ...]:
    """The same numbers, of changed elements the share."""
    relative, largest, cosine, _, odd = cells(row)
    share = row.magnitude.num_changed / max(1, row.magnitude.num_elements)
    return relative, largest, cosine, f"{100 * share:.3g}%", odd


def _bar(row: Moved, most: float) -> page.Html:
    return page.Html(f'<i style="width:{round(100 * min(1.0, _part(row, most)))}px"></i>')
