"""Files behind URLs: a folder, an index or a file of a web server, read by range requests, many at a time.

Nothing is copied to the local disk. Every answer's size and ETag are held against the first one's, so that bytes of two
versions never meet.
"""

from __future__ import annotations

import html.parser
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ...errors import ClosedCheckpointError, MissingShardError, ReadError, SourceChangedError, UnsafePathError
from ..base import Cost, File, Listing, Parts, Store, is_hidden, is_plain
from ..strict_json import show
from ..together import together
from .connections import Headers
from .ranges import Forbidden, Moved, Version, fetch, page, shown

# A round trip costs what a megabyte does; requests wait for the server and the network rather than for each other.
COST = Cost(gap_nbytes=1 << 20, block_nbytes=8 << 20, num_in_flight=8)
MAX_THREADS = 16  # that wait for answers about usual names
HEAD_NBYTES = 64  # of the first request, which also tells the size: enough for the length of a header
MAX_LEVELS = 4
MAX_FILES = 10_000
_USUAL = (
    *("model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors", ".metadata"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin", "config.json", "generation_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"),
    *("adapter_config.json", "automodel_peft_config.json", "README.md", "LICENSE"),
)
Authorize = Callable[[], Headers]


def anonymous() -> Headers:
    """The headers of somebody without a token."""
    return {}


class HttpFile(File):
    """A file behind a URL. The first request tells its size and ETag; others have to agree with it."""

    cost = COST

    def __init__(self, url: str, name: str, authorize: Authorize = anonymous, version: Version | None = None):
        self.url, self.name, self.path = url, name, shown(url)
        self._authorize = authorize
        self._given = version
        self._moved: dict[str, Moved] = {}
        self._head = b""
        self._closed = False

    @cached_property
    def version(self) -> Version:
        """Size and ETag, by a request for the first bytes."""
        if self._given is not None:
            return self._given
        held = bytearray(HEAD_NBYTES)
        version = fetch(self.url, self._authorize(), 0, [memoryview(held)], None, self._moved)
        self._head = bytes(held[: version.size])
        return version

    @property
    def size(self) -> int:
        return self.version.size

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        size, validator = self.version
        return self.path, size, validator or f"no ETag: {secrets.token_hex(8)}"

    def exists(self) -> bool:
        """Whether the server has it."""
        try:
            return self.size >= 0
        except (MissingShardError, Forbidden):  # some servers forbid to look at what is not there
            return False

    def texts(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if all(offset + nbytes <= min(HEAD_NBYTES, self.size) for offset, nbytes in ranges) and self._head:
            return [self._head[offset : offset + nbytes] for offset, nbytes in ranges]
        return super().texts(ranges)

    def _fill(self, parts: Parts) -> None:
        if self._closed:
            raise ClosedCheckpointError(f"{self.path} belongs to a closed checkpoint; open it again to read")
        for buffer, offset in parts:
            if offset + len(buffer) > self.size and len(buffer):
                raise ReadError(
                    f"{self.path} ends at byte {self.size}, {offset + len(buffer) - self.size} bytes short of what its "
                    "header promises"
                )
        together(self._fetch, _requests(parts), COST.num_in_flight)

    def _fetch(self, request: tuple[int, list[memoryview]]) -> None:
        start, buffers = request
        fetch(self.url, self._authorize(), start, buffers, self.version, self._moved)

    def check_unchanged(self) -> None:
        last = max(0, self.size - 1)
        try:
            fetch(self.url, self._authorize(), last, [memoryview(bytearray(1))], self.version, self._moved)
        except MissingShardError as error:
            raise SourceChangedError(f"{self.path} is gone since the checkpoint was opened: it changed") from error

    def close(self) -> None:
        self._closed = True

    def __reduce__(self) -> tuple[type[HttpFile], tuple[Any, ...]]:
        return HttpFile, (self.url, self.name, self._authorize, self.version)


def _requests(parts: Parts) -> Iterator[tuple[int, list[memoryview]]]:
    """(first byte, buffers) of each request: parts that touch are asked for together, long ones are cut."""
    start, buffers, nbytes = 0, [], 0  # type: int, list[memoryview], int
    for whole, offset in sorted((part for part in parts if len(part[0])), key=lambda part: part[1]):
        at = 0
        while at < len(whole):
            if buffers and (offset + at != start + nbytes or nbytes == COST.block_nbytes):
                yield start, buffers
                buffers, nbytes = [], 0
            if not buffers:
                start = offset + at
            piece = whole[at : at + COST.block_nbytes - nbytes]
            buffers.append(piece)
            nbytes += len(piece)
            at += len(piece)
    if buffers:
        yield start, buffers


class HttpStore(Store):
    """A folder of a web server. What is in it is what a listing page links to, or what answers under a usual name."""

    def __init__(self, url: str, authorize: Authorize = anonymous, query: str = "", named: str = ""):
        self.url, self.path = url, shown(url).rstrip("/")
        self._authorize = authorize
        self._query, self._named = query, named  # a signature is for the one file that the user named
        self._files: dict[str, HttpFile] = {}

    @cached_property
    def _listed(self) -> Listing | None:
        """What the folder's listing page names, None where the server makes none."""
        return self._pages(0)

    @cached_property
    def _listed_deep(self) -> Listing | None:
        """What the listing pages of the folder and of those in it name."""
        return self._pages(MAX_LEVELS) if self._listed is not None else None

    def _pages(self, levels: int) -> Listing | None:
        files: list[str] = []
        todo, seen = [("", 0)], {""}
        while todo and len(files) < MAX_FILES:
            inside, level = todo.pop()
            found = page(urljoin(self.url, quote(inside)), self._authorize())
            if found is None or found[0] != "text/html":
                continue
            for name in _links(urljoin(self.url, quote(inside)), found[1].decode("utf-8", "replace")):
                if not is_plain(name.removesuffix("/")):
                    continue
                if not name.endswith("/"):
                    files.append(inside + name)
                elif level < levels and inside + name not in seen:
                    seen.add(inside + name)
                    todo.append((inside + name, level + 1))
        return self._sorted(files) if files else None

    @property
    def _known(self) -> Listing | None:
        """The listing, where one has been asked for: a single file needs none."""
        return None if self._named and "_listed" not in self.__dict__ else self._listed

    @staticmethod
    def _sorted(names: Sequence[str]) -> Listing:
        found = sorted(set(names))
        hidden = {name: "hidden" for name in found if any(is_hidden(part) for part in name.split("/"))}
        return Listing(tuple(name for name in found if name not in hidden), hidden)

    def list(self, deep: bool = True) -> Listing:
        listed = self._listed_deep if deep else self._listed
        if listed is not None:
            return listed
        there = [
            name for name, is_there in zip(_USUAL, together(self.has, _USUAL, MAX_THREADS), strict=True) if is_there
        ]
        return self._sorted(there)._replace(is_whole=False)

    def has(self, name: str) -> bool:
        if not is_plain(name):
            return False
        if (listed := self._known) is not None and "/" not in name:
            return name in listed.files or name in listed.others
        return self.open(name).exists()

    def open(self, name: str) -> HttpFile:
        if not is_plain(name):
            raise UnsafePathError(
                f"{self.path}: the file {show(name)}: expected a plain name inside the folder; correct the index"
            )
        if self._known is not None and "/" not in name and not self.has(name):
            raise MissingShardError(f"{self.path}: the file {show(name)} is missing; is the upload complete?")
        if name not in self._files or self._files[name]._closed:
            self._files[name] = HttpFile(self.address(name), name, self._authorize)
        return self._files[name]

    def address(self, name: str) -> str:
        """The URL of a file."""
        return urljoin(self.url, quote(name)) + (f"?{self._query}" if self._query and name == self._named else "")


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs.extend(value for name, value in attrs if name == "href" and value)


def _links(base: str, text: str) -> list[str]:
    """What a page links to directly below its own address: names, those of folders with a slash."""
    anchors = _Anchors()
    anchors.feed(text)
    found = []
    for href in anchors.hrefs:
        try:
            target, here = urlsplit(urljoin(base, href)), urlsplit(base)
        except ValueError:
            continue
        below = target.path.removeprefix(here.path)
        if target[:2] == here[:2] and not target.query and below != target.path and below:
            name = unquote(below)
            if "/" not in name.removesuffix("/"):
                found.append(name)
    return found
