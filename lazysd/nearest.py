"""What somebody may have meant: near names, for the end of an error message."""

from __future__ import annotations

from collections.abc import Collection

MAX_NAMES = 50_000  # comparing with more takes longer than a person waits for an error


def did_you_mean(name: object, known: Collection[str]) -> str:
    """ "; did you mean 'x'?" where one of the known names is near, else "".

    >>> did_you_mean("nemoo", ["hf", "nemo"])
    "; did you mean 'nemo'?"
    """
    import difflib

    close = difflib.get_close_matches(str(name), known, n=1) if len(known) <= MAX_NAMES else []
    return f"; did you mean {close[0]!r}?" if close else ""
