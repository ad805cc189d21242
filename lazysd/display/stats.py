"""Stats as text and HTML: a table of many tensors, a histogram of one. Nothing here reads data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..formats.base import sentence
from ..stores.strict_json import printable
from . import page
from .columns import GAP, aligned

_BAR = 40  # characters of the longest bar
_BLOCKS = " ▏▎▍▌▋▊▉█"
MAX_ROWS = 200  # of an HTML table
HEADINGS = ("min", "max", "mean", "std", "zeros", "NaN", "inf")
QUANTILES = {"1%": 0.01, "50%": 0.5, "99%": 0.99}  # of a table, where a line has room
COLUMNS = ("min", *QUANTILES, *HEADINGS[1:])
NAMES = 44  # characters of names for which a narrow table gives up columns


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"


def _cells(found: Any) -> dict[str, str]:
    """By column, in their order."""
    zeros = f"{100 * found.num_zeros / found.num_elements:.3g}%" if found.num_elements else "-"
    numbers = map(number, (found.min, found.max, found.mean, found.std))
    cells = dict(zip(HEADINGS, (*numbers, zeros, str(found.num_nan), str(found.num_inf)), strict=True))
    cells |= {name: number(found.quantiles[at]) if at in found.quantiles else "-" for name, at in QUANTILES.items()}
    return {name: cells[name] for name in COLUMNS}


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


def text_of_all(found: Mapping[str, Any], keys: Iterable[str] | None = None, width: int | None = None) -> str:
    """A line a tensor. To fit `width` characters, columns that say least are left out, and names cut in the middle."""
    return _table([(printable(key), found[key]) for key in (found if keys is None else keys)], width)


def text_of_rows(rows: Sequence[Any], width: int | None = None, top: int | None = None) -> str:
    """A line a row of tensors that differ only in numbers; what tensors have alone, quantiles, is left out."""
    shown = rows[: MAX_ROWS if top is None else top]
    names = [row.name + (f" x {len(row.keys)}" if len(row.keys) > 1 else "") for row in shown]
    columns = COLUMNS if all(len(row.keys) == 1 for row in shown) else HEADINGS
    lines = [_table(list(zip(names, (row.stats for row in shown), strict=True)), width, columns)]
    if left := rows[len(shown) :]:
        lines.append(f"… and {sum(len(row.keys) for row in left)} more tensors in {len(left)} rows")
    odd = [key for row in rows if not row.stats.is_finite for key in row.odd]
    return "\n".join([*lines, *([f"NaN or inf in {sentence(len(odd), 'tensor', odd)}"] if odd else [])])


def _table(named: Sequence[tuple[str, Any]], width: int | None, columns: Sequence[str] = COLUMNS) -> str:
    cells = [_cells(found) for _, found in named]
    columns = _fitting(cells, columns, max((len(name) for name, _ in named), default=0), width)
    rows = [
        ("tensor", *columns),
        *((name, *(row[column] for column in columns)) for (name, _), row in zip(named, cells, strict=True)),
    ]
    return "\n".join(aligned(rows, range(1, len(rows[0])), width))


def _fitting(cells: Sequence[Mapping[str, str]], columns: Sequence[str], longest: int, width: int | None) -> list[str]:
    """The columns that leave room for names; none that tells of a value that is not finite goes."""
    columns = list(columns)
    calm = [name for name in ("NaN", "inf") if all(row[name] == "0" for row in cells)]
    dispensable = ["1%", "99%", *(["zeros"] if all(row["zeros"] == "0%" for row in cells) else []), *calm, "50%"]
    wide = {name: len(GAP) + max(len(name), *(len(row[name]) for row in cells)) for name in columns} if cells else {}
    dispensable = [name for name in dispensable if name in columns]
    while width and dispensable and cells and min(longest, NAMES) + sum(wide[name] for name in columns) > width:
        columns.remove(dispensable.pop(0))
    return columns


def html_of(found: Mapping[str, Any], headline: str = "") -> str:
    """A table of many tensors for notebooks."""
    keys = list(found)[:MAX_ROWS]
    rows = [(key, *_marked(found[key]).values(), _spark(found[key])) for key in keys]
    table = page.table(("tensor", *COLUMNS, ""), rows, "tensor", MAX_ROWS, len(found))
    return page.frame(f"<p>{page.shown(headline)}</p>{table}", f"{headline}\n{text_of_all(found, keys, 80)}")


def html_of_one(found: Any) -> str:
    """One tensor for notebooks: its numbers, its quantiles, its histogram as a picture."""
    head = f"{found.dtype.lower()}{list(found.shape)}, {found.num_elements:,} elements"
    numbers = page.pairs((name, cell) for name, cell in _marked(found).items() if name in HEADINGS)
    quantiles = page.pairs((f"{100 * at:g}%", number(value)) for at, value in found.quantiles.items())
    body = f"<p><b>Stats</b> {page.shown(head)}</p>{numbers}{_histogram(found)}{quantiles}"
    return page.frame(body, text_of(found))


def _marked(found: Any) -> dict[str, object]:
    """The cells of a line, with NaN and infinities marked where there are some."""
    cells: dict[str, Any] = dict(_cells(found))
    return cells | {
        "NaN": page.alarm(cells["NaN"], found.num_nan > 0),
        "inf": page.alarm(cells["inf"], found.num_inf > 0),
    }


def _path(counts: Sequence[int], width: int, height: int) -> str:
    """The outline of a histogram in a box of `width` x `height`."""
    most, step = max(counts), width / len(counts)
    steps = "".join(f"V{height - height * n / most:.1f}h{step:g}" for n in counts)
    return f'<path class="b" d="M0 {height}{steps}V{height}z"/>'


def _spark(found: Any) -> page.Html:
    """A histogram as large as a word."""
    if len(found.bin_counts) < 2:
        return page.Html("")
    return page.Html(f'<svg width="80" height="13" aria-hidden="true">{_path(found.bin_counts, 80, 13)}</svg>')


def _histogram(found: Any) -> str:
    if len(found.bin_counts) < 2:
        return ""
    low, high = number(found.bin_edges[0]), number(found.bin_edges[-1])
    return (
        '<svg class="fit" role="img" aria-label="histogram" viewBox="0 0 400 98" width="400" height="98">'
        f'{_path(found.bin_counts, 400, 80)}<path d="M0 80.5H400"/>'
        f'<text x="0" y="95">{low}</text><text x="400" y="95" text-anchor="end">{high}</text></svg>'
    )
