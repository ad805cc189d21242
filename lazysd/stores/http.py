"""http:// and https:// addresses: a folder, an index or a file of a web server."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import MissingShardError
from .base import Options, Place


class Http:
    """Opens http:// and https:// addresses."""

    rank = 20

    def place(self, path: Any, options: Options) -> Place | None:
        if not isinstance(path, str) or not path.lower().startswith(("http://", "https://")):
            return None
        from .web.files import HttpStore  # with it comes all of http.client, which opening a folder does not need

        try:
            parts = urlsplit(path)
            _ = parts.port
        except ValueError as error:
            raise MissingShardError(f"cannot open {path}: {error}; check the address") from None
        if not parts.hostname:
            raise MissingShardError(f"cannot open {path}: it names no host; check the address")
        folder, _, last = parts.path.rpartition("/")
        origin = f"{parts.scheme.lower()}://{parts.netloc}"
        if "." not in last:  # a folder, with or without the slash
            return Place(HttpStore(f"{origin}{parts.path.rstrip('/')}/"))
        name = unquote(last)
        return Place(HttpStore(f"{origin}{folder}/", query=parts.query, named=name), name)


STORE = Http()
