"""The style of pages against JupyterLab's own: no rule of a notebook decides how lazysd's HTML looks.

JupyterLab's rules stand here as data (JupyterLab 4.6, rendermime and outputarea), by selector and property. Without a
browser, specificities are compared; where there is a chromium, it renders the pages and is asked.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lazysd
from lazysd.display.page import STYLE

COMMON = ".jp-RenderedHTMLCommon"
CELL = "vertical-align:middle;padding:0.5em;line-height:normal;white-space:normal;max-width:none;border:none"
JUPYTERLAB = {
    f"{COMMON}": "color:#444;font-family:serif;font-size:14px;line-height:1.6;padding-right:20px",
    f"{COMMON} ul": "list-style:disc;margin-bottom:1em",
    f"{COMMON} ul:not(.list-inline)": "padding-left:2em",
    f"{COMMON} ul ul": "list-style:square;margin-bottom:0",
    f"{COMMON} ul ul ul": "list-style:circle",
    f"{COMMON} > pre": "margin:1.5em 2em",
    f"{COMMON} pre": "color:#444;font-size:13px;border:none;margin:0;padding:0",
    f"{COMMON} code": "border:0;background-color:#fff;color:#444;font-family:serif;font-size:inherit;line-height:1.3;"
    "padding:0;white-space:pre-wrap",
    f"{COMMON} :not(pre) > code": "background-color:#eee;padding:1px 5px",
    f"{COMMON} table": "border-collapse:collapse;border-spacing:0;border:none;color:#444;font-size:13px;"
    "table-layout:fixed;margin-left:auto;margin-bottom:1em;margin-right:auto",
    f".jp-OutputArea-output{COMMON} table": "margin-left:0;margin-right:0",
    f"{COMMON} thead": "border-bottom:1px solid #444;vertical-align:bottom",
    **{f"{COMMON} {tag}": CELL for tag in ("td", "th", "tr")},
    f"{COMMON} thead th": "font-weight:bold",
    f":not(.jp-RenderedMarkdown){COMMON} td": "text-align:right",
    f":not(.jp-RenderedMarkdown){COMMON} th": "text-align:right",
    f":not(.jp-RenderedMarkdown){COMMON} tr": "text-align:right",
    f"{COMMON} tbody tr:nth-child(odd)": "background:#fff",
    f"{COMMON} tbody tr:nth-child(even)": "background:#f5f5f5",
    f"{COMMON} tbody tr:hover": "background:#e0f0ff",
    f"{COMMON} p": "text-align:left;margin:0;margin-bottom:1em",
    f"{COMMON} svg": "max-width:100%;height:auto",
    f"{COMMON} > *:last-child": "margin-bottom:0.5em",
}
NOT_OURS = {  # tag -> properties that JupyterLab may keep, for they show nothing
    "tr": {
        "vertical-align",
        "padding",
        "line-height",
        "white-space",
        "max-width",
        "text-align",
    },  # cells say so themselves
    "thead": {"vertical-align"},
    "pre": {"color", "font-size", "margin"},  # the text that shows where our style is gone
    "table": {"border-collapse", "border-spacing"},
    "svg": {"height"},
    "p": {"text-align"},
    "*": {"margin-bottom"},
}
Rule = tuple[str, dict[str, str]]


def rules(css: str) -> Iterator[Rule]:
    """(selector, declarations) of every rule, those within @container too."""
    css = re.sub(r"@[^{]*\{((?:[^{}]*\{[^{}]*\})*)\s*\}", r"\1", css)
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        found = dict(part.split(":", 1) for part in body.replace("\n", "").split(";") if part.strip())
        for selector in selectors.split(","):
            yield selector.strip(), found


def specificity(selector: str) -> tuple[int, int]:
    """(classes, attributes and pseudo-classes; elements and pseudo-elements) of a selector without ids."""
    assert "#" not in selector
    flat = re.sub(r":not\(([^)]*)\)", r" \1", selector)
    elements = len(re.findall(r"::[\w-]+|(?:^|[\s>+~])[a-z][\w-]*", flat))
    flat = re.sub(r"::[\w-]+", "", flat)
    return len(re.findall(r"\.[\w-]+|\[[^\]]*\]|:[\w-]+", flat)), elements


def subject(selector: str) -> str:
    """The tag that a selector is about, "*" where it names none."""
    last = re.split(r"[\s>+~]+", selector)[-1]
    found = re.match(r"[a-z]+", last)
    return found.group() if found else "*"


def covers(ours: str, theirs: str) -> bool:
    """Whether a property sets another, being it or its shorthand."""
    return theirs == ours or theirs.startswith(f"{ours}-") or (ours == "font" and theirs == "line-height")


OURS = list(rules(STYLE.removeprefix("<style>").removesuffix("</style>")))


def test_specificity() -> None:
    assert specificity(":not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon td") == (2, 1)
    assert specificity(".a tbody tr:nth-child(odd)") == (2, 2)
    assert specificity(".a.a.a details[open]>summary::before") == (4, 3)
    assert max(map(specificity, JUPYTERLAB)) < (3, 0)


def test_every_rule_of_ours_is_above_jupyterlabs() -> None:
    strongest = max(map(specificity, JUPYTERLAB))
    assert [selector for selector, _ in OURS if specificity(selector) <= strongest] == []


def test_what_jupyterlab_says_of_our_tags_is_said_by_us_too() -> None:
    """A property that we leave out is theirs."""
    left = []
    for selector, body in rules("".join(f"{s}{{{b}}}" for s, b in JUPYTERLAB.items())):
        tag = subject(selector)
        if selector == COMMON:
            continue
        for theirs in body:
            said = any(covers(ours, theirs) and subject(selector) == tag for selector, mine in OURS for ours in mine)
            if not said and theirs not in NOT_OURS.get(tag, ()):
                left.append((tag, theirs))
    assert left == []


def test_tags_are_those_that_have_rules(golden: Path) -> None:
    """A tag that no rule here knows might be styled by the notebook unseen."""
    known = {subject(selector) for selector, _ in OURS} | {"div", "span", "b", "style"}
    for page in pages(golden).values():
        assert set(re.findall(r"<([a-z0-9]+)", page.split("</style>")[1])) - {"thead", "tbody"} <= known


def pages(golden: Path) -> dict[str, str]:
    ckpt = lazysd.open(golden / "qwen3_moe_tiny")
    nemo = ckpt.convert("nemo")
    torch.manual_seed(0)
    moved = {key: tensor.materialize() for key, tensor in ckpt.items()}
    moved["model.layers.1.mlp.experts.3.up_proj.weight"] += 1
    long = ckpt | {"a" * 150 + ".weight": lazysd.from_torch(torch.zeros(7, 7))}
    shown: dict[str, Any] = {
        "checkpoint": long,
        "tensor": nemo["model.layers.0.mlp.experts.gate_and_up_projs"],
        "plan": nemo.plan(),
        "layout": lazysd.layouts.get("nemo", "qwen3_moe"),
        "comparison": lazysd.compare(ckpt, moved),
        "stats": ckpt.stats("*norm*"),
        "one": ckpt["lm_head.weight"].stats(),
    }
    return {name: one._repr_html_() for name, one in shown.items()}


ASK = """
const found = {};
const ask = (frame) => (css) => [...frame.contentDocument.querySelectorAll(css)].map((e) => {
  const s = getComputedStyle(e), r = e.getBoundingClientRect();
  return {text: e.textContent.slice(0, 40), align: s.textAlign, display: s.display, color: s.color,
          bullet: s.listStyleType, background: s.backgroundColor, font: s.fontFamily.split(',')[0], size: s.fontSize,
          left: r.left, right: r.right, width: r.width, height: r.height};
});
window.onload = () => {
  for (const frame of document.querySelectorAll('iframe')) {
    const all = ['.lazysd', '.lazysd-text', 'td', 'td:first-child', 'tr', 'li', 'code', '.s', '.n'];
    found[frame.title] = Object.fromEntries(all.map((css) => [css, ask(frame)(css)]));
  }
  document.body.textContent = JSON.stringify(found);
};
"""
INK = {"light": ("rgb(32, 32, 32)", "#fff"), "dark": ("rgb(224, 224, 224)", "#111")}


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("no chromium here: computed styles are not checked, only the cascade above")


def framed(title: str, page: str, width: int, colours: str) -> str:
    """A page as a notebook of some width shows it, in a document of its own."""
    css = "".join(f"{selector}{{{body}}}" for selector, body in JUPYTERLAB.items())
    ink, paper = INK[colours]
    document = (
        f"<!doctype html><meta charset=utf-8><style>body{{margin:0;background:{paper}}}{css}</style>"
        f'<div class="jp-OutputArea-output jp-RenderedHTMLCommon" style="color:{ink};padding:0">{page}</div>'
    )
    size = f'width="{width}" height="900" frameborder="0"'
    return f'<iframe title="{title}" {size} srcdoc="{html.escape(document)}"></iframe>'


def rendered(frames: list[str], folder: Path) -> dict[str, Any]:
    """Computed styles by the frames' titles and by selector."""
    program = browser()
    whole = f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}<script>{ASK}</script>"
    (folder / "page.html").write_text(whole, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [program, *flags, "--virtual-time-budget=5000", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<body>(\{.*\})</body>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return answer


@pytest.mark.slow
def test_rendered(golden: Path, tmp_path: Path) -> None:
    """In a browser, at two widths, light and dark, with our style and where it is stripped."""
    frames = []
    for name, page in pages(golden).items():
        opened = page.replace("<details>", "<details open>")
        frames += [framed(f"{name} wide", opened, 900, "light"), framed(f"{name} narrow", opened, 380, "dark")]
        bare = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
        frames.append(framed(f"{name} bare", bare, 900, "light"))
    answer = rendered(frames, tmp_path)
    assert len(answer) == len(frames)
    for title, found in answer.items():
        (box,), (text,) = found[".lazysd"], found[".lazysd-text"]
        if title.endswith(" bare"):
            assert (box["display"], text["display"]) == ("none", "block"), title
            continue
        assert (box["display"], text["display"]) == ("block", "none"), title
        width, ink = (900, INK["light"][0]) if title.endswith(" wide") else (380, INK["dark"][0])
        assert width - 1 >= box["right"] - 1 > 0, title
        assert {cell["align"] for cell in found["td:first-child"]} <= {"left"}, title
        assert {row["background"] for row in found["tr"] + found["code"]} <= {"rgba(0, 0, 0, 0)"}, title
        assert {item["bullet"] for item in found["li"]} <= {"none"}, title
        assert {one["color"] for one in found["li"] + found["code"] + found["td"]} <= {ink}, title
        assert {code["font"] for code in found["code"]} <= {"ui-monospace"}, title
        assert [size for size in found[".s"] if size["right"] > width or size["width"] < 1] == [], title
        assert [name for name in found[".n"] if name["right"] > width + 1 and "lazysd" not in title] == [], title
    for end in ("wide", "narrow"):
        tree = answer[f"checkpoint {end}"]
        lefts = sorted({round(item["left"]) for item in tree["li"]})
        assert lefts == [0, 19, 38, 57, 76]  # each level further in
        assert len({round(size["right"]) for size in tree[".s"]}) == 1  # sizes stand under each other
        long = next(name for name in tree[".n"] if name["text"].startswith("aaaa"))
        assert long["right"] <= tree[".lazysd"][0]["right"]
    assert answer["comparison wide"]["td:first-child"][0]["left"] == 0
