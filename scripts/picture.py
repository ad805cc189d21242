"""Draw what the demo prints as an SVG that fits a README, commands and comments in colour.

python scripts/demo.py | python scripts/picture.py > docs/demo.svg
"""

from __future__ import annotations

import html
import sys

LINE, CHAR, MARGIN = 18, 7.85, 16
COMMANDS = ("inspect", "plan", "convert hf", "show")  # the steps of the demo that are drawn
MAX_LINES = 13  # of a step; what is left out in the middle is marked


def chosen(output: str) -> list[str]:
    """The lines that are drawn: some steps, each with its beginning and its last line."""
    lines: list[str] = []
    for step in output.strip().split("\n# "):
        title, _, rest = step.partition("\n")
        if not rest.startswith(tuple(f"$ lazysd {command}" for command in COMMANDS)):
            continue
        body = rest.split("\n\nEverything is in")[0].rstrip().splitlines()
        if len(body) > MAX_LINES:
            body = [*body[: MAX_LINES - 2], "…", body[-1]]
        lines += ["", f"# {title.removeprefix('# ')}", *body]
    return lines[1:]


def draw(lines: list[str]) -> str:
    """One text element a line on a dark panel."""
    width = max(len(line) for line in lines) * CHAR + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    rows = []
    for number, line in enumerate(lines):
        colour = {"#": "#8b949e", "$": "#7ee787"}.get(line[:1], "#e6edf3")
        y = MARGIN + LINE * (number + 0.75)
        rows.append(f'<text x="{MARGIN}" y="{y:g}" fill="{colour}" xml:space="preserve">{html.escape(line)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#0d1117"/>\n' + "\n".join(rows) + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(draw(chosen(sys.stdin.read())))
