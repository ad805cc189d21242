"""Patterns of axes and keys as users parse them, arguments looked at; the room's own calls go past this."""

from __future__ import annotations

from ..arguments import checked
from . import keys, pattern

parse_axes = checked(pattern.parse_axes)
parse_key = checked(keys.parse_key)
