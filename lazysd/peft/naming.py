"""Keys of adapters as PEFT saves them, of files that were saved otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import LayoutError

# an adapter's name between a factor and the end: PEFT's modules have it, its files leave it out
_NAMED = re.compile(
    r"(?P<head>(?:.*\.)?(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save))"
    r"\.(?P<name>[^.]+)(?P<tail>|\.weight|\.bias)",
    re.DOTALL,
)
_WHOLE = ".modules_to_save"


def plain_names(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """(key -> key as PEFT writes it, the adapter's name), of the keys that carry the name of the adapter.

    Raises LayoutError for the keys of several adapters.
    """
    found: dict[str, str] = {}
    names: dict[str, None] = {}
    for key in keys:
        match = _NAMED.fullmatch(key)
        if match is None or (match["name"] in ("weight", "bias") and not match["tail"]):
            continue
        names[match["name"]] = None
        found[key] = match["head"].removesuffix(_WHOLE) + match["tail"]
    if len(names) > 1:
        raise LayoutError(f"one file holds the keys of several adapters: {', '.join(names)}; save each on its own")
    return found, next(iter(names), "")
