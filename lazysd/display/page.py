"""The frame of HTML in notebooks: a style that a notebook's own does not override, plain text where it is stripped.

A notebook that is not trusted, and GitHub, drop <style>: then the plain text shows, and lists and tables read in order.
No script, nothing from outside, and no more than MAX_PAGE characters of names, whatever is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..stores.strict_json import printable

MAX_NAME = 100  # characters shown of one name
MAX_TITLE = 400  # of the name that is shown when the mouse rests on it
MAX_SENTENCE = 400
MAX_PAGE = 100_000  # characters of all rows of a page, as HTML
MAX_ROWS = 500
MAX_FACTS = 24
MAX_TEXT = 60  # lines of plain text
_END = 16  # characters at the end of a name that stay, however narrow the page
_ROW = 290  # characters of HTML around a name

# Notebooks style what is below .jp-RenderedHTMLCommon by rules of up to two classes and two elements; three win.
_ROOT = ".lazysd.lazysd.lazysd"
_RULES = """
&{display:block!important;font:13px/1.55 system-ui,sans-serif;color:inherit;max-width:104ch;margin:0;overflow-x:auto;
container-type:inline-size;contain-intrinsic-inline-size:64ch}
&-text&-text&-text{display:none!important}
& code,& td,& th,& .m{font:12px/1.55 ui-monospace,Menlo,Consolas,monospace;color:inherit;background:none;
padding:0;border:0;white-space:pre}
& p,& ul,& table,& li,& details,& pre{margin:0;padding:0;border:0;background:none}
& ul{list-style:none}
& ul ul{margin-left:7px;padding-left:11px;border-left:1px solid rgba(128,128,128,.35)}
& li{list-style:none;text-align:left}
& .r,& summary{display:flex;flex-wrap:wrap;column-gap:1.5ch;align-items:baseline}
& .r{padding-left:16px}
& .to{padding-left:32px;margin-bottom:3px}
& summary{cursor:pointer;list-style:none}
& summary::-webkit-details-marker{display:none}
& summary::before{content:"▸";width:16px;margin-right:-1.5ch;flex:none;opacity:.65}
& details[open]>summary::before{content:"▾"}
& .n{display:flex;flex:1 1 auto;min-width:0;max-width:100%;white-space:pre}
& summary .n{max-width:calc(100% - 16px)}
& .h{overflow:hidden;text-overflow:ellipsis;min-width:2ch}
& .e{flex:none}
& .y{flex:0 1 auto;min-width:22ch;white-space:pre;overflow:hidden;text-overflow:ellipsis;opacity:.75}
& .c{flex:none;min-width:6ch;white-space:pre;opacity:.75}
& .s{flex:none;min-width:9ch;margin-left:auto;text-align:right;white-space:pre}
& .f{display:flex;column-gap:1.5ch;align-items:baseline}
& .k{flex:none;width:9ch;opacity:.65}
& .p{display:flex;flex-wrap:wrap;column-gap:3ch}
& .p .k{width:auto;margin-right:1ch}
& .v{min-width:0;overflow-wrap:anywhere}
& .dim{opacity:.65}
& .odd{color:#d9534f;font-weight:600}
& table{border-collapse:collapse;border-spacing:0;table-layout:auto;width:auto;max-width:100%;color:inherit;
font-size:12px}
& tr,& tr:hover,& thead,& tbody{background:none;border:0}
& td,& th{padding:0 0 0 1.5ch;text-align:right;vertical-align:baseline;border:0;white-space:pre;font-weight:400;
max-width:none;min-width:0}
& th{opacity:.65}
& td:first-child,& th:first-child,& .l{text-align:left}
& td:first-child,& th:first-child{padding-left:0}
& .w{white-space:normal;overflow-wrap:anywhere}
& i{display:block;height:.7em;min-width:1px;background:#4c8bf5}
& svg{display:block;margin:6px 0;max-width:none}
& svg.fit{max-width:100%;height:auto}
& rect{fill:none;stroke:currentColor;stroke-opacity:.5}
& path{fill:none;stroke:currentColor;stroke-opacity:.4}
& path.b{fill:#4c8bf5;stroke:none}
& td svg{margin:0;display:inline-block;vertical-align:middle}
& text{fill:currentColor;font:12px ui-monospace,Menlo,Consolas,monospace}
@container (max-width:72ch){
& .y,& .c{min-width:0}
}
@container (max-width:104ch){
& i{max-width:40px}
& table.t{width:100%}
& .t td:first-child{width:100%}
& .t .h{contain:inline-size;flex:1;min-width:15ch;max-width:var(--all)}
}
@container (max-width:60ch){
& i{max-width:16px}
& .t .h{min-width:6ch}
}
"""
STYLE = "<style>" + _RULES.replace("&-text", ".lazysd-text").replace("&", _ROOT) + "</style>"


class Html(str):
    """Text that is HTML already."""


def frame(body: str, text: str) -> str:
    """A whole page: `body`, and `text` for where the style that hides it is stripped."""
    lines = [printable(line) for line in text.split("\n")]
    if len(lines) > MAX_TEXT:
        lines = [*lines[:MAX_TEXT], f"… and {len(lines) - MAX_TEXT} more lines"]
    plain = escape("\n".join(cut(line, MAX_SENTENCE) for line in lines))
    beside = f'<pre class="lazysd-text" style="white-space:pre;overflow-x:auto">{plain}</pre>'
    return f'{STYLE}{beside}<div class="lazysd" hidden style="display:none">{body}</div>'


def cut(text: str, most: int = MAX_NAME) -> str:
    """The beginning and the end of a text that is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def shown(text: object, most: int = MAX_SENTENCE) -> Html:
    """Any text, escaped, printable and cut."""
    return text if isinstance(text, Html) else Html(escape(cut(printable(str(text)), most)))


def alarm(text: str, is_odd: bool) -> Html:
    """Text that stands out where something is wrong."""
    return Html(f'<span class="odd">{shown(text)}</span>') if is_odd else shown(text)


def name(text: str, tag: str = "code") -> Html:
    """A name that gives way in its middle where the page is narrow, and says itself whole as its title."""
    text = printable(text)
    short = cut(text)
    title = f' title="{escape(cut(text, MAX_TITLE))}"' if len(text) > 2 * _END else ""
    head, end = short[:-_END], short[-_END:]
    parts = f'<span class="h" style="--all:{len(head)}ch">{escape(head)}</span><span class="e">{escape(end)}</span>'
    return Html(f'<{tag} class="n"{title}>{parts if len(short) > 2 * _END else escape(short)}</{tag}>')


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """A list of what is known, a word before each."""
    lines = [f'<li class="f"><span class="k">{k}</span> <span class="v">{shown(v)}</span></li>' for k, v in rows]
    left = more(len(lines) - MAX_FACTS, "line")
    return Html(f"<ul>{''.join(lines[:MAX_FACTS])}</ul>{left}" if lines else "")


def pairs(rows: Iterable[tuple[str, object]]) -> Html:
    """Words with their numbers, side by side as far as there is room."""
    items = (f'<li><span class="k">{shown(word)}</span> {shown(value)}</li>' for word, value in rows)
    return Html(f'<ul class="p">{"".join(items)}</ul>')


def fitting(names: Iterable[str], most: int = MAX_ROWS, around: int = _ROW) -> int:
    """How many of these names, from the first on, a page has room for."""
    room, count = MAX_PAGE, 0
    for text in names:
        room -= around + len(escape(cut(text))) + len(escape(cut(text, MAX_TITLE)))
        if count == most or room < 0:
            break
        count += 1
    return count


def more(left: int, noun: str) -> Html:
    """A line that says how many are not shown; nothing where all are."""
    return Html(f'<p class="dim">… and {counted(left, f"more {noun}")}</p>' if left > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "tensor"), counted(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], noun: str, most: int = MAX_ROWS, total: int | None = None
) -> Html:
    """Rows under headings; the first cell of a row is its name, and Html cells stand as they are.

    Args:
        headings: as many as a row has cells.
        rows: capped; what is left out is counted.
        noun: what a row is.
        most: rows shown at most.
        total: rows there are, where not all are given.
    """
    if not rows:
        return Html("")
    count = fitting((str(row[0]) for row in rows), most, _ROW + 60 * len(headings))
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = []
    for first, *cells in rows[:count]:
        label = first if isinstance(first, Html) else name(str(first), "span")
        body.append(f"<tr><td>{label}</td>{''.join(f'<td>{shown(cell, MAX_NAME)}</td>' for cell in cells)}</tr>")
    whole = f'<table class="t"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return Html(whole + more((len(rows) if total is None else total) - count, noun))
