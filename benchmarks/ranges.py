"""Range requests against a server on localhost: lazysd's client and whichever others are installed.

Every client fetches the same ranges with the same number of threads into one buffer. The server waits a little before
each answer, as a network does. Usage: python benchmarks/ranges.py [megabytes] [kilobytes a range] [repeats]
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LATENCY_SECONDS, THREADS, PIECE_NBYTES = 0.02, 8, 1 << 18
Fetch = Callable[[int, memoryview], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    data = b""

    def log_message(self, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        time.sleep(LATENCY_SECONDS)
        self.send_response(206)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.data)}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(memoryview(self.data)[first : last + 1])


def serve(nbytes: int, ports: Any) -> None:
    Handler.data = os.urandom(1 << 20) * (nbytes >> 20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()


def clients(url: str) -> dict[str, Fetch]:
    from lazysd.stores.web.files import HttpFile

    file = HttpFile(url, "f")
    assert file.size

    def ranged(start: int, held: memoryview) -> dict[str, str]:
        return {"Range": f"bytes={start}-{start + len(held) - 1}"}

    def place(held: memoryview, pieces: Any) -> None:
        at = 0
        for piece in pieces:
            held[at : at + len(piece)] = piece
            at += len(piece)

    found: dict[str, Fetch] = {"lazysd (http.client)": lambda start, held: file.read([(held, start)])}
    if importlib.util.find_spec("urllib3"):
        import urllib3

        pool = urllib3.PoolManager(maxsize=THREADS)

        def by_urllib3(start: int, held: memoryview) -> None:
            answer = pool.request("GET", url, headers=ranged(start, held), preload_content=False)
            place(held, answer.stream(PIECE_NBYTES))

        found["urllib3"] = by_urllib3
    if importlib.util.find_spec("httpx"):
        import httpx

        client = httpx.Client()

        def by_httpx(start: int, held: memoryview) -> None:
            with client.stream("GET", url, headers=ranged(start, held)) as answer:
                place(held, answer.iter_bytes(PIECE_NBYTES))

        found["httpx"] = by_httpx
    if importlib.util.find_spec("obstore"):
        import obstore
        from obstore.store import HTTPStore

        store = HTTPStore.from_url(url.rsplit("/", 1)[0], client_options={"allow_http": True})

        def by_obstore(start: int, held: memoryview) -> None:
            place(held, [memoryview(obstore.get_range(store, "f", start=start, end=start + len(held)))])

        found["obstore"] = by_obstore
    return found


def main() -> None:
    megabytes, kilobytes, repeats = (int(text) for text in (*sys.argv[1:], *("256", "8192", "5")[len(sys.argv) - 1 :]))
    ports: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(megabytes << 20, ports), daemon=True)
    server.start()
    held = memoryview(bytearray(megabytes << 20))
    rates: dict[str, list[tuple[float, float]]] = {}
    found = clients(f"http://127.0.0.1:{ports.get()}/f")
    for _ in range(repeats):
        for name, fetch in found.items():
            begun, cpu = time.perf_counter(), time.process_time()
            with ThreadPoolExecutor(THREADS) as crew:
                step = kilobytes << 10
                starts = range(0, len(held), step)
                list(crew.map(fetch, starts, [held[at : at + step] for at in starts]))
            rates.setdefault(name, []).append(
                (len(held) / 1e6 / (time.perf_counter() - begun), time.process_time() - cpu)
            )
    server.terminate()
    waits = f"{LATENCY_SECONDS * 1e3:g} ms before each answer"
    print(f"{megabytes} MiB in ranges of {kilobytes} KiB, {THREADS} threads, {waits}")
    for name, taken in rates.items():
        speed, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"{name:24}{speed:8.0f} MB/s{cpu:8.2f} s of CPU")


if __name__ == "__main__":
    main()
