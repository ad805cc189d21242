"""Mutations of what lazysd or the hub keeps: manifests, journals, graphs as JSON, caches, answers of servers."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from checkpoints import random_hf
from mutators import Kind, mutated_bytes, mutated_json, mutated_value
from safetensors.torch import save

import lazysd
from lazysd.checking import check_folder
from lazysd.errors import LazysdError
from lazysd.etags import check_snapshot
from lazysd.graph.spec import from_json, to_json
from lazysd.save.manifest import MANIFEST
from lazysd.stores.journal import JOURNAL
from lazysd.stores.output_folder import OutputFolder
from lazysd.stores.web import connections, ranges
from lazysd.tensor.lazy import LazyTensor

TAIL_NBYTES = len(b'\n "crc32": "00000000"\n}\n')
READ_NBYTES = 1 << 20


def small() -> lazysd.Checkpoint:
    """A mixture of experts in memory, which saves as three shards."""
    return lazysd.open({"model.safetensors": save(random_hf()), "config.json": b'{"model_type": "qwen3_moe"}'})


def mutate_lines(lines: list[bytes], draw: random.Random, change: Callable[[bytes, random.Random], bytes]) -> bool:
    """A line gone, there twice, with other bytes, or changed by `change`: whether it was that."""
    at, what = draw.randrange(len(lines)), draw.randrange(5)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif what == 2:
        lines[at] = mutated_bytes(lines[at], draw)
    else:
        lines[at] = change(lines[at], draw)
    return what > 2


def mutated_entry(line: bytes, draw: random.Random) -> bytes:
    """A line of a manifest that says other things."""
    text = line.strip().rstrip(b",")
    if not text.startswith(b'"'):
        return line
    value = mutated_value(json.loads(b"{" + text + b"}"), draw)
    return b"  " + json.dumps(value).encode()[1:-1] + b",\n"


def signed_anew(line: bytes, draw: random.Random) -> bytes:
    """A line of a journal that says other things, with the checksum of what it says."""
    text = mutated_json(line.partition(b" ")[2], draw)
    return b"%08x %b\n" % (zlib.crc32(text), text)


def endless(line: bytes, draw: random.Random) -> bytes:
    """A line of a journal that says one thing over and over."""
    return line[:9] + draw.choice((b"9", b"x")) * draw.choice((100, 100_000)) + b"\n"


def mutated_manifest(raw: bytes, draw: random.Random) -> bytes:
    """A manifest changed; half of them say by their checksum that they are whole."""
    if draw.random() < 0.5:
        return mutated_json(raw, draw)
    head, _, tail = raw[:-TAIL_NBYTES].partition(b' "tensors": {\n')
    lines = [head.splitlines(True), tail.splitlines(True)]
    mutate_lines(draw.choice([lines[0], lines[1], lines[1]]), draw, mutated_entry)
    signed = b"".join(lines[0]) + (b' "tensors": {\n' if draw.random() < 0.98 else b"") + b"".join(lines[1])
    return signed + b'\n "crc32": "%08x"\n}\n' % zlib.crc32(signed)


class Manifest(Kind):
    """lazysd.manifest.json: sound is what was written, and no other text; all else has a fault that is named."""

    def run(self) -> str:
        folder = self.folder / "written"
        if not folder.exists():
            made = {
                "a": torch.arange(6.0).reshape(2, 3),
                "b.c": torch.arange(4, dtype=torch.int8),
                "s": torch.tensor(3.0),
            }
            made["e"] = torch.zeros(0, 4, dtype=torch.bfloat16)
            held = lazysd.Checkpoint({key: lazysd.from_torch(value) for key, value in made.items()}, config={"a": 1})
            held.save(folder, max_shard_size=300)
        path = folder / MANIFEST
        good = path.read_bytes()
        text = mutated_manifest(good, self.draw)
        path.write_bytes(text)
        try:
            found = check_folder(folder)
            assert not found.sound or says_the_same(text, good), text
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{text!r}") from error
        finally:
            path.write_bytes(good)
        return "accepted" if found.sound else "refused"


def says_the_same(text: bytes, good: bytes) -> bool:
    """Whether a manifest signed anew says nothing of tensors and files that the one before has not said."""
    try:
        one, other = json.loads(text), json.loads(good)
    except ValueError:  # no JSON, and signed: no accident makes that, and a forgery may say anything
        return True
    return all(
        other[part].get(name, {}).items() <= said.items()
        for part in ("tensors", "files")
        for name, said in one[part].items()
    )


class Journal(Kind):
    """What an interrupted save left: journal or manifest changed, shards damaged. The rerun gives the very bytes."""

    def run(self) -> str:
        out = self.folder / "out"
        building = self.folder / ".out.lazysd-partial"
        if not hasattr(self, "whole"):
            self.ckpt = small()
            self.save(out)
            self.whole = {path.name: path.read_bytes() for path in out.iterdir()}
            shutil.rmtree(out)
            interrupted = mock.patch.object(OutputFolder, "commit", side_effect=KeyboardInterrupt)
            with interrupted, suppress(KeyboardInterrupt):
                self.save(out)
            self.left = {path.name: path.read_bytes() for path in building.iterdir()}
        building.mkdir(exist_ok=True)
        files = dict(self.left)
        signed = self.mutate(files)
        for name, raw in files.items():
            (building / name).write_bytes(raw)
        try:
            self.save(out)
            found = {path.name: path.read_bytes() for path in out.iterdir()}
            found = {
                name: raw for name, raw in found.items() if not signed or name != MANIFEST
            }  # it says what it was told
            assert all(raw == self.whole[name] for name, raw in found.items()), "another result"
            assert len(found) == len(self.whole) - signed, "not all of it"
        except Exception as error:
            if signed and isinstance(error, LazysdError):
                return "refused"
            raise AssertionError(f"{files.get(JOURNAL)!r} {files.get(MANIFEST)!r}: {error}") from error
        finally:
            for left in (out, building):
                shutil.rmtree(left, ignore_errors=True)
        return "accepted"

    def save(self, out: Path) -> None:
        self.ckpt.save(out, max_shard_size=300, workers=1)

    def mutate(self, files: dict[str, bytes]) -> bool:
        """Change some; whether what they say has a checksum of its own, so that it counts."""
        draw = self.draw
        if draw.random() < 0.2:
            name = draw.choice([name for name in files if name.endswith(".safetensors")])
            files[name] = mutated_bytes(files[name], draw)
        if draw.random() < 0.3:  # killed between the journal's going and the rename
            del files[JOURNAL]
            signed = draw.random() < 0.5
            raw = files[MANIFEST]
            files[MANIFEST] = mutated_manifest(raw, draw) if signed else mutated_bytes(raw, draw)
            return signed
        lines = files[JOURNAL].splitlines(True)
        change = draw.choice((signed_anew, signed_anew, endless))
        if draw.random() < 0.4:
            lines, signed = [mutated_bytes(files[JOURNAL], draw)], False
        else:
            signed = mutate_lines(lines, draw, change) and change is signed_anew
        files[JOURNAL] = b"".join(lines)
        return signed


class Graph(Kind):
    """JSON of graphs: what is read is a graph that is written the same, and gives tensors, or errors of lazysd."""

    def run(self) -> str:
        if not hasattr(self, "text"):
            ckpt = small()
            self.file = ckpt.files[0]
            roots = dict(ckpt.convert("nemo")) | {"cast": ckpt["model.embed_tokens.weight"].to(torch.float32)[1:3]}
            self.text = json.dumps(to_json(roots)).encode()
        text = mutated_json(self.text, self.draw)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "refused"
        try:
            found = from_json(value, LazyTensor, lambda path: self.file)
            again = to_json(found)
            assert from_json(again, LazyTensor, lambda path: self.file).keys() == found.keys()
            [lazy.materialize() for lazy in found.values() if lazy.nbytes < READ_NBYTES]
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{text!r}") from error
        return "accepted"


class Snapshot(Kind):
    """A model in the hub cache: its ref, the names of blobs (their etags), links and bytes."""

    def run(self) -> str:
        draw = self.draw
        home = self.folder / "models--org--name"
        files = {"model.safetensors": save({"w": torch.ones(2)}), "config.json": b'{"a": 1}'}
        ref = b"abc123" if draw.random() < 0.5 else mutated_bytes(b"abc123", draw)
        names = {name: self.etag(name, raw) for name, raw in files.items()}
        blobs = dict(names)
        name = draw.choice(list(files))
        damaged = draw.random() < 0.5
        raw = mutated_bytes(files[name], draw) if damaged else files[name]
        if draw.random() < 0.5:
            text = mutated_bytes(names[name].encode(), draw).decode("latin-1").replace("\0", "").replace("/", "")
            blobs[name] = text if text not in ("", ".", "..") else "x"
        try:
            for place in ("blobs", "refs", "snapshots/abc123"):
                (home / place).mkdir(parents=True)
            (home / "refs" / "main").write_bytes(ref)
            for one, data in files.items():
                target = home / "blobs" / blobs[one]
                target.write_bytes(raw if one == name else data)
                link = blobs[one] if draw.random() < 0.95 else draw.choice(("gone", "../../../x", ".", "/dev/zero"))
                (home / "snapshots" / "abc123" / one).symlink_to(Path("../../blobs") / link)
            result = check_snapshot(home / "snapshots" / "abc123")
            compared = {
                one for one in files if one not in result.strangers and one not in {f.file for f in result.faults}
            }
            for one in compared:
                place = home / "snapshots" / "abc123" / one
                data = place.read_bytes()
                assert os.path.basename(os.readlink(place)) == self.etag(one, data), "sound, and not its etag's"
            with lazysd.open(home) as ckpt:
                [lazy.materialize() for lazy in ckpt.values()]
        except LazysdError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{ref!r} {blobs!r} {raw!r}") from error
        finally:
            shutil.rmtree(home, ignore_errors=True)
        return "accepted" if result.sound else "refused"

    def etag(self, name: str, raw: bytes) -> str:
        if name.endswith(".safetensors"):
            return hashlib.sha256(raw).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


class Server(Kind):
    """A web server whose answers are changed before their bodies: status, headers, sizes, ranges."""

    def run(self) -> str:
        data = save({"w": torch.arange(300.0), "b": torch.ones(3)})
        sent: list[bytes] = []

        def get(url: str, headers: Any) -> Any:
            answer = http.client.HTTPResponse(Socket(self.answer(url, data, headers, sent)))  # type: ignore[arg-type]
            answer.begin()
            return mock.Mock(), answer

        with (
            mock.patch.object(connections.connections, "get", get),
            mock.patch.object(connections.connections, "put"),
            mock.patch.object(ranges.time, "sleep"),
        ):
            try:
                with lazysd.open("http://h/model.safetensors") as ckpt:
                    found = {key: lazy.materialize() for key, lazy in ckpt.items()}
                assert found["w"].tolist() == list(range(300))
                assert found["b"].tolist() == [1, 1, 1]
            except LazysdError:
                return "refused"
            except Exception as error:
                raise AssertionError(f"{sent!r}") from error
        return "accepted"

    def answer(self, url: str, data: bytes, headers: Any, sent: list[bytes]) -> bytes:
        if "Range" not in headers or not url.endswith("/model.safetensors"):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        first, last = map(int, headers["Range"].removeprefix("bytes=").split("-"))
        body = data[first : last + 1]
        head = (
            f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{first + len(body) - 1}/{len(data)}\r\n"
            f'Content-Length: {len(body)}\r\nETag: "abc"\r\nContent-Type: application/octet-stream\r\n'
        ).encode()
        if self.draw.random() < 0.4:  # an empty line would end the head, and nobody could tell
            lines = mutated_bytes(head, self.draw).split(b"\n")
            head = b"".join(line + b"\n" for line in lines if line.strip(b"\r"))
        if self.draw.random() < 0.1:
            extra = (b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Location: /x", b"Retry-After: 9e9")
            head += self.draw.choice(extra) + b"\r\n"
        if self.draw.random() < 0.1:
            body = body[: self.draw.randrange(len(body) + 1)]
        sent.append(head)
        return head + b"\r\n" + body


class Socket:
    """What http.client reads an answer from."""

    def __init__(self, raw: bytes):
        self.raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.raw)
