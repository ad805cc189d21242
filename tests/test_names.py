"""Names of others: what a file, its name or a config says reaches terminals and notebooks as text, and no more."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lazysd
from lazysd.cli import main as command_line
from lazysd.cli.main import COMMANDS, main
from lazysd.stores.strict_json import printable

NAMES = {
    "escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "another direction": "a\u202eb\u2066c\u200f",
    "new lines": "a\nlazysd: verified\r\nb\u2028c\x85d\x0be",
    "unseen": "a\u200bb\ufeffc\U000e0041\xadd",
    "eight-bit escape": "a\x9b31mb",
    "HTML": "<script>alert(1)</script>&\"'<img src=x onerror=alert(1)>",
    "long": "L" * 10_000,
    "combining": "a" + "\u0301" * 100,
    "NUL": "a\x00b",
    "not UTF-8": "a\udcffb",
}
UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def hostile(folder: Path, name: str, file_name: str) -> dict[str, Path]:
    """A checkpoint, one of other bytes, an adapter, and what breaks in several ways, all with this name in them."""
    tensors = {
        f"model.layers.{layer}.mlp.experts.{e}.{word}_proj.weight": torch.ones(2, 2)
        for layer in range(2) for e in range(2) for word in ("gate", "up", "down")
    }  # fmt: skip
    tensors |= {key: torch.ones(2) for key in (name, f"model.{name}.weight", f"layers.0.{name}", f"layers.1.{name}")}
    config = {"model_type": "qwen3_moe", "num_experts": 2, name: name, "_name_or_path": name, "architectures": [name]}
    places = {word: folder / f"{word}{file_name[:80]}" for word in ("src", "other", "adapter", "broken", "config")}
    for word, place in places.items():
        place.mkdir()
        if word == "adapter":
            pair = {"A": torch.ones(1, 2), "B": torch.ones(2, 1)}
            factors = {f"base_model.model.{name}.lora_{side}.weight": factor for side, factor in pair.items()}
            save_file(factors, place / "adapter_model.safetensors")
            said = {"peft_type": "LORA", "r": 1, "lora_alpha": name, "target_modules": [name], "bias": name}
            (place / "adapter_config.json").write_text(json.dumps({**said, "rank_pattern": {name: name}}))
            continue
        file = place / f"{file_name[:80]}.safetensors"
        values = {key: tensor * 2 if word == "other" else tensor for key, tensor in tensors.items()}
        save_file(values, place / "model", {"format": "pt", name: name})
        os.replace(place / "model", file)
        (place / f"{file_name[:80]}.txt").write_text("a side file")
        (place / f"{file_name[:80]}.bin").write_bytes(b"no weights")
        said = {**config, "model_type": name, "num_experts": name} if word == "config" else config
        (place / "config.json").write_text(json.dumps(said))
        if word == "broken":
            os.truncate(file, file.stat().st_size - 1)
    return places


class Tags(HTMLParser):
    """Which tags and attributes a page has."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """A thousand commands: the parser of all is built once, and no disk is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "build_parser", cache(command_line.build_parser))
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.mark.parametrize("kind", NAMES)
def test_every_command_prints_text(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = NAMES[kind] if kind != "not UTF-8" else "ab"  # a key is UTF-8 in any case
    places = hostile(tmp_path, name, NAMES[kind].replace("\0", "").replace("/", "_"))
    src, other, adapter, out = places["src"], places["other"], places["adapter"], tmp_path / "out"
    ran = set()
    for place in places.values():
        for command in (
            *(["inspect", place], ["inspect", place, "--keys"], ["inspect", place, "--tree"]),
            *(["plan", place, "--to", "nemo"], ["plan", place, "--dtype", "f16"], ["verify", place]),
            *(["convert", place, out, "-v"], ["verify", out], ["convert", place, out, "--to", "nemo", "--overwrite"]),
            *(["verify", out, "--against", other], ["verify", place, "--against", src], ["diff", place, other]),
            *(["stats", place], ["show", place, name], ["show", place, f"layers.0.{name}", "--no-values"]),
            *(["show", place, f"{name}x"], ["merge", place, adapter, out, "--overwrite"], ["layouts", name]),
            *(["diff", place, other, "--json"], ["inspect", place, "--json-lines"], ["inspect", place, f"--{name}"]),
        ):
            words = [str(word).replace("\0", "") for word in command]
            try:
                code = main(words)
            except SystemExit as stop:  # argparse
                code = stop.code
            assert code in (0, 1, 2, 3), words
            ran.add(words[0])
            shown = capfd.readouterr()
            for text in (shown.out, shown.err):
                assert UNSEEN.search(text) is None, (words, UNSEEN.search(text))
                assert not any(line.startswith("lazysd: verified") for line in text.splitlines()), words
            assert shown.err.count("\n") == len(shown.err.splitlines()) < 40
        shutil.rmtree(out, ignore_errors=True)
    assert ran >= {module.__name__.rsplit(".", 1)[-1] for module in COMMANDS} - {"completion"}


@pytest.mark.parametrize("kind", NAMES)
def test_every_picture_is_text_in_known_tags(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind] if kind != "not UTF-8" else "ab"
    places = hostile(tmp_path, name, NAMES[kind].replace("\0", "").replace("/", "_"))
    with lazysd.open(places["src"]) as ckpt, lazysd.open(places["other"]) as other:
        found = lazysd.compare(ckpt, other)
        things = (
            ckpt,
            ckpt[name],
            ckpt[f"model.{name}.weight"],
            ckpt.plan(),
            ckpt.stats(),
            found,
            ckpt.convert("nemo"),
        )
        for thing in things:
            page = thing._repr_html_()
            read = Tags(page)
            assert not read.tags & {"script", "img", "iframe", "a", "link", "object", "embed"}, thing
            assert not any(word.startswith("on") or word in ("src", "href") for word in read.attributes), thing
            assert UNSEEN.search(page) is None, type(thing)
            assert UNSEEN.search(repr(thing)) is None, type(thing)


def test_printable_leaves_text_alone() -> None:
    assert printable("model.layers.0.größe 模型 ✓") == "model.layers.0.größe 模型 ✓"
    assert printable("a\x1b[0m\n\udcff\u202e") == "a\\x1b[0m\\n\\udcff\\u202e"
