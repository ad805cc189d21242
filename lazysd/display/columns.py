"""Rows for a terminal: columns that fit, sizes flush right, long names cut in the middle."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

GAP = "  "
MAX_PADDED = 72  # where no width is given, a longer cell of the first column pushes only its own row
MIN_FIRST = 20  # columns of the first cell that stay, however narrow the terminal


def shorten(text: str, width: int) -> str:
    """`text` in `width` characters, the middle left out: beginnings and ends of names tell more.

    >>> shorten("model.layers.0.mlp.experts.gate_up_proj", 20)
    'model.laye…e_up_proj'
    """
    if len(text) <= width or width < 3:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def hanging(line: str, width: int | None, indent: int = 9) -> str:
    """A word and a sentence: what does not fit `width` goes on under the sentence. As it is where nobody looks.

    >>> print(hanging("because  of this and that", 20))
    because  of this and
             that
    """
    if width is None or len(line) <= width or width < 2 * indent:
        return line
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False))


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = (), width: int | None = None) -> list[str]:
    """Rows as lines, cells of a column under each other.

    Args:
        rows: cells, as many in each row.
        right: columns whose cells end under each other instead of beginning so.
        width: characters a line may have; the first column is cut to fit. None where nobody looks at a screen: nothing
            is cut, and a very long name does not push the other rows' cells away.
    """
    if not rows:
        return []
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    others = sum(wide[1:]) + len(GAP) * (len(wide) - 1)
    first = min(wide[0], MAX_PADDED) if width is None else min(wide[0], max(MIN_FIRST, width - others))
    lines = []
    for name, *cells in rows:
        shown = [f"{name if width is None else shorten(name, first):{first}}"]
        shown += [f"{cell:{'>' if k in right else '<'}{wide[k]}}" for k, cell in enumerate(cells, 1)]
        lines.append(GAP.join(shown).rstrip())
    return lines
