"""Which packages hold families and dialects. Apart from the registry, so that to announce them imports little."""

from __future__ import annotations

from collections.abc import Iterable

FOLDERS: dict[str, Iterable[str]] = {}  # package of families or dialects -> where its files are


def add_folder(package: str, path: Iterable[str]) -> None:
    """Announce a package whose files hold FAMILY, FAMILIES or DIALECT; they are imported when first needed."""
    FOLDERS[package] = path
