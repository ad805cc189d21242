"""Byte ranges of URLs: redirects, retries of what may be retried, and what is refused.

Source: RFC 9110 (ranges, validators, redirects).
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from ...errors import MissingShardError, ReadError, SourceChangedError
from .connections import Headers, connections

NUM_TRIES = 5
FIRST_PAUSE_SECONDS = 0.2  # doubled from one try to the next
MAX_PAUSE_SECONDS = 30.0  # also of what a server asks for
MAX_REDIRECTS = 5
MAX_BODY_NBYTES = 4 << 20  # of a page that is read whole
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NO_RANGE = re.compile(r"bytes \*/(\d{1,18})")


class Version(NamedTuple):
    """What tells that two answers are about the same bytes."""

    size: int
    validator: str | None  # the ETag, or when it was last modified


class Moved(NamedTuple):
    """Where a URL has led to, and until when it may be asked there."""

    url: str
    until: float


class Forbidden(ReadError):
    """The server asks for a permission."""


def shown(url: str) -> str:
    """A URL for messages: without the user's password, and without a query that may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fetch(
    url: str,
    headers: Headers,
    start: int,
    buffers: Sequence[memoryview],
    known: Version | None,
    moved: dict[str, Moved],
) -> Version:
    """Fill `buffers`, one after the other, with the bytes from `start` on; fewer only where the file ends before.

    Args:
        known: what earlier answers said; another file is refused before a byte of it is used. None: the first answer.
        moved: where URLs have led to; kept by the caller.

    Raises:
        MissingShardError: 404 or 410. SourceChangedError: another size or validator than `known`.
        ReadError: everything else, after NUM_TRIES tries where a retry may help.
    """
    wanted, done, pause = sum(map(len, buffers)), 0, FIRST_PAUSE_SECONDS
    problem = ""
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        asked = {**headers, "Range": f"bytes={start + done}-{start + wanted - 1}"}
        try:
            with _answer(url, asked, moved) as answer:
                if answer.status in _BUSY:
                    pause = max(pause, _retry_after(answer))
                    problem = f"the server answers {answer.status} {answer.reason}"
                    continue
                version = _checked(url, answer, start + done, start + wanted, known)
                known = known or version
                ends = min(wanted, version.size - start)
                while done < ends:
                    if not (count := _read_into(answer, buffers, done, ends)):
                        break
                    done += count
                if done >= ends:
                    return version
                problem = f"the answer ended {ends - done} bytes early"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, (ReadError, MissingShardError, SourceChangedError)):
                raise
            if isinstance(error, ssl.SSLCertVerificationError):
                raise ReadError(f"cannot read {shown(url)}: {error.verify_message}; is this the right host?") from error
            problem = str(error) or type(error).__name__
    raise ReadError(f"cannot read {wanted} bytes at {start} of {shown(url)}: {problem}, {NUM_TRIES} times")


def page(url: str, headers: Headers) -> tuple[str, bytes] | None:
    """(content type, body) of a small page; None where there is none."""
    try:
        with _answer(url, headers, {}) as answer:
            if answer.status != 200:
                return None
            return answer.headers.get_content_type(), answer.read(MAX_BODY_NBYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ReadError(f"cannot read {shown(url)}: {error or type(error).__name__}; check the address") from error


def _read_into(answer: http.client.HTTPResponse, buffers: Sequence[memoryview], done: int, ends: int) -> int:
    """Read once, into the buffer that byte `done` belongs to."""
    left, first = ends - done, done
    for buffer in buffers:
        if first < len(buffer):
            return answer.readinto(buffer[first : first + left])
        first -= len(buffer)
    return 0


def _checked(url: str, answer: http.client.HTTPResponse, start: int, stop: int, known: Version | None) -> Version:
    """The file's version, once it is sure that the answer is the range that was asked for."""
    where, status = shown(url), answer.status
    validator = answer.getheader("ETag") or answer.getheader("Last-Modified")
    if status == 416 and (match := _NO_RANGE.fullmatch(answer.getheader("Content-Range", ""))):
        version = Version(int(match[1]), validator or (known.validator if known else None))
        if known and known.size != version.size:
            raise _changed(where, known, version)
        return version
    if status in (404, 410):
        raise MissingShardError(f"cannot read {where}: the server answers {status} {answer.reason}; check the address")
    if status in (401, 403):
        raise Forbidden(f"cannot read {where}: the server answers {status} {answer.reason}; it asks for a permission")
    if status == 200 and answer.length == 0 and not known:
        return Version(0, validator)
    if status == 200:
        raise ReadError(
            f"cannot read {where}: asked for bytes {start} to {stop - 1}, the server answers with the whole file (200 "
            "instead of 206); it does not serve ranges, so fetch the files first"
        )
    match = _RANGE.fullmatch(answer.getheader("Content-Range", "")) if status == 206 else None
    if match is None:
        raise ReadError(f"cannot read {where}: expected 206 Partial Content, found {status} {answer.reason}")
    first, last, size = (int(number) for number in match.groups())
    version = Version(size, validator)
    if known and (known.size != size or (validator is not None and known.validator != validator)):
        raise _changed(where, known, version)
    if first != start or last != min(stop, size) - 1 or answer.getheader("Content-Encoding", "identity") != "identity":
        raise ReadError(f"cannot read {where}: asked for bytes {start} to {stop - 1}, the server sent {match[0]}")
    return version


def _changed(where: str, known: Version, found: Version) -> SourceChangedError:
    return SourceChangedError(
        f"{where} changed since the checkpoint was opened (was {known.size} bytes, ETag {known.validator}, is "
        f"{found.size} bytes, ETag {found.validator}); open it again"
    )


@contextmanager
def _answer(url: str, headers: Headers, moved: dict[str, Moved]) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, redirects followed. Its connection is kept if the answer has been read to its end."""
    now, target, sent = time.monotonic(), url, dict(headers)
    if (led := moved.get(url)) and led.until > now:
        target, sent = led.url, _for_host(headers, url, led.url)
    for _ in range(MAX_REDIRECTS + 1):
        here = target
        connection, answer = connections.get(here, sent)
        try:
            if answer.status in _MOVED and (place := answer.getheader("Location")):
                answer.read(MAX_BODY_NBYTES)
                following = urljoin(target, place)
                _check_redirect(target, following)
                sent = _for_host(headers, url, following)
                moved[url] = Moved(following, now + 300.0)
                target = following
                continue
            if target != url and answer.status in (400, 401, 403, 404, 410):  # a signed address that has run out
                moved.pop(url, None)
                if led is not None:
                    target, sent, led = url, dict(headers), None
                    continue
            yield answer
            return
        finally:
            connections.put(here, connection, answer)
    raise ReadError(f"cannot read {shown(url)}: redirected more than {MAX_REDIRECTS} times")


def _check_redirect(source: str, target: str) -> None:
    kinds = urlsplit(source).scheme, urlsplit(target).scheme
    if kinds[1] not in ("http", "https") or kinds == ("https", "http"):
        raise ReadError(f"cannot read {shown(source)}: it redirects to {shown(target)}, which is not secure")


def _for_host(headers: Headers, url: str, target: str) -> dict[str, str]:
    """The headers; a token stays with the host that it is for."""
    if urlsplit(url)[:2] == urlsplit(target)[:2]:
        return dict(headers)
    return {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}


def _retry_after(answer: http.client.HTTPResponse) -> float:
    said = answer.getheader("Retry-After", "")
    if said.isdecimal() and len(said) < 6:
        return min(float(said), MAX_PAUSE_SECONDS)
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time()), MAX_PAUSE_SECONDS)
    except (ValueError, TypeError):
        return 0.0
