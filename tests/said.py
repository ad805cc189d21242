"""What a command says beside its lines of progress, which a slow machine lets it print and a fast one does not."""

from __future__ import annotations

import re


def without_progress(said: str) -> str:
    """The text of stderr, less the lines of progress."""
    return re.sub(r"^\w+: \d+% of .* left\n", "", said, flags=re.MULTILINE)
