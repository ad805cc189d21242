"""Other names for keys, by patterns as file names have them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .arguments import checked
from .checkpoint import Checkpoint
from .errors import LayoutError
from .stores.strict_json import show

_WILD = re.compile(r"\*|\?")


@checked
def rename_keys(checkpoint: Checkpoint, rules: Sequence[tuple[str, str]]) -> Checkpoint:
    """The checkpoint with keys renamed by (old, new) patterns, as a view; the first pattern that fits a key renames it.

    `*` stands for any text and `?` for one character. What each stands for in the old name is put where the new one
    has the same sign, in order.

    >>> import torch, lazysd
    >>> from lazysd.renaming import rename_keys
    >>> ckpt = lazysd.Checkpoint({"model.layers.0.w": lazysd.from_torch(torch.zeros(2))})
    >>> list(rename_keys(ckpt, [("model.layers.*.w", "h.*.weight")]))
    ['h.0.weight']

    Raises:
        LayoutError: a pattern fits no key, its new name cannot be filled in, or two keys get one name.
    """
    compiled = [(_matcher(old), new) for old, new in rules]
    for old, new in rules:
        if _WILD.findall(old) != _WILD.findall(new):
            raise LayoutError(
                f"cannot rename {show(old)} to {show(new)}: both need the same * and ?, in the same order"
            )
    used: set[int] = set()

    def renamed(key: str) -> str:
        for number, (matcher, new) in enumerate(compiled):
            if found := matcher.fullmatch(key):
                used.add(number)
                return _filled(new, found.groups())
        return key

    try:
        result = checkpoint.rename(renamed)
    except ValueError as error:
        raise LayoutError(str(error)) from error
    for number, (old, _) in enumerate(rules):
        if number not in used:
            raise LayoutError(f"cannot rename {show(old)}: no key fits, or an earlier pattern took all that do")
    return result


def _filled(pattern: str, words: Sequence[str]) -> str:
    left = iter(words)
    return _WILD.sub(lambda sign: next(left), pattern)


def _matcher(pattern: str) -> re.Pattern[str]:
    """Each sign as a group. A star takes the least that lets what follows it fit, for good: the next can take more."""
    head, *tails = ("".join("(.)" if char == "?" else re.escape(char) for char in part) for part in pattern.split("*"))
    stars = [f"(?>(.*?){tail})" for tail in tails[:-1]] + [f"(.*?){tail}" for tail in tails[-1:]]
    return re.compile(head + "".join(stars), re.DOTALL)
