"""Errors of the library in the words of the command line: options instead of Python's arguments."""

from __future__ import annotations

import re

_OPTION = r"(--[a-z-]+)"
_REWORDED = [
    (re.compile(rf"\b\w+=\w*,? \({_OPTION}\)"), r"\1"),  # overwrite=True (--overwrite)
    (re.compile(rf"\(\w+=, {_OPTION}\)"), r"(\1)"),  # (family=, --family)
    (re.compile(r"\(config=, config\.json\)"), "(config.json)"),
    (re.compile(r" \(\w+=\w* in Python\)"), ""),
    (re.compile(rf"config=\{{[^{{}}]*\}}, {_OPTION}"), r"\1"),  # config={"lora_alpha": …}, --lora-alpha
    (re.compile(r"\bmax_memory ([0-9])"), r"--max-memory \1"),
    (re.compile(r"(--dtype \w+), lazysd\.quantization\.dequantize\b"), r"\1"),
]


def in_options(text: str) -> str:
    """A message as somebody who typed a command can follow it.

    >>> in_options("out exists; choose another destination or pass overwrite=True (--overwrite)")
    'out exists; choose another destination or pass --overwrite'
    >>> in_options("say which one it is (source=, --from)")
    'say which one it is (--from)'
    """
    for pattern, words in _REWORDED:
        text = pattern.sub(words, text)
    return text
