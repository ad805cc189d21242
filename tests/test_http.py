"""Checkpoints behind URLs: which bytes travel, what is retried, what is refused, and that the result is the same."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from range_server import Handler, RangeServer, serving
from safetensors.torch import load_file, save

import lazysd
from lazysd.cli.main import main
from lazysd.errors import MissingShardError, ReadError, SourceChangedError
from lazysd.stores.base import Store
from lazysd.stores.together import together
from lazysd.stores.web import files as http
from lazysd.stores.web import ranges
from lazysd.testing.conformance.stores import StoreSuite

KEY = "model.layers.0.mlp.experts."


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FIRST_PAUSE_SECONDS", 0.0)


def files_of(folder: Path, under: str = "/m/") -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {under + str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def server(golden: Path) -> Iterator[RangeServer]:
    with serving(files_of(golden / "qwen3_moe_tiny")) as running:
        yield running


class TestHttp(StoreSuite):
    @pytest.fixture(autouse=True)
    def running(self) -> Iterator[None]:
        with serving({}) as self.server:
            yield

    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        self.server.files = {f"/m/{name}": data for name, data in files.items()}
        return http.HttpStore(f"{self.server.url}/m/")

    def change(self, name: str, data: bytes, tmp_path: Path) -> None:
        self.server.files[f"/m/{name}"] = data


class TestHttpThatCannotList(TestHttp):
    lists = False

    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        self.server.lists = False
        return super().make(files, tmp_path)


def same(found: Any, golden: Path) -> None:
    expected = {k: t for path in (golden / "qwen3_moe_tiny").glob("*.safetensors") for k, t in load_file(path).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key].materialize(), tensor) for key, tensor in expected.items())


def test_a_folder_an_index_and_a_single_file_open(server: RangeServer, golden: Path) -> None:
    for address in ("/m/", "/m", "/m/model.safetensors.index.json"):
        ckpt = lazysd.open(server.url + address)
        assert (ckpt.path, ckpt.layout, ckpt.remarks) == (f"{server.url}/m", "hf", ())
        assert ckpt.config is not None
        same(ckpt, golden)
    one = lazysd.open(f"{server.url}/m/model-00001-of-00002.safetensors?signature=secret")
    assert one.path == f"{server.url}/m/model-00001-of-00002.safetensors"
    assert "secret" not in repr(one)
    assert set(one) < set(ckpt)


def test_opening_reads_headers_and_no_data(server: RangeServer) -> None:
    ckpt = lazysd.open(f"{server.url}/m/")
    headers = sum(8 + int.from_bytes(d[:8], "little") for n, d in server.files.items() if n.endswith(".safetensors"))
    texts = sum(len(data) for name, data in server.files.items() if name.endswith((".index.json", "/config.json")))
    assert server.nbytes <= headers + texts + http.HEAD_NBYTES * (len(server.files) + 2)
    assert len([1 for path, _ in server.requests if path.endswith(".safetensors")]) == 4  # two a shard
    before = server.nbytes
    ckpt.convert("nemo").plan()
    repr(ckpt.convert("nemo")[KEY + "down_projs"][2])
    assert server.nbytes == before


def test_what_travels_is_what_reads_says(server: RangeServer) -> None:
    nemo = lazysd.open(f"{server.url}/m/").convert("nemo")
    for node in (nemo[KEY + "down_projs"], nemo[KEY + "down_projs"][2], nemo[KEY + "gate_and_up_projs"][3:5, :, ::2]):
        server.reset()
        node.materialize()
        wanted = sum(nbytes for *_, nbytes in node.reads())
        assert wanted <= server.nbytes <= 1.05 * wanted
    one = nemo[KEY + "gate_and_up_projs"][1]
    assert sum(nbytes for *_, nbytes in one.reads()) == one.nbytes


def test_touching_parts_are_one_request_and_long_ones_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    with serving({"/f": data}) as server:
        file = http.HttpFile(f"{server.url}/f", "f")
        assert file.size == len(data)
        server.reset()
        held = [bytearray(n) for n in (1000, 3000, 500, 0)]
        places = (5000, 6000, 9000, 3)
        file.read([(memoryview(buffer), at) for buffer, at in zip(held, places, strict=True)])
        assert b"".join(held) == data[5000:9500]
        assert [asked for _, asked in server.requests] == ["bytes=5000-9499"]
        server.reset()
        monkeypatch.setattr(http, "COST", http.COST._replace(block_nbytes=10_000))
        whole = bytearray(len(data))

        def slow(handler: Handler, path: str, data: bytes) -> bool:
            time.sleep(0.05)
            return False

        server.odd = slow
        file.read([(memoryview(whole), 0)])
        assert bytes(whole) == data
        assert (server.nbytes, len(server.requests)) == (len(data), 10)
        assert server.busiest >= 4


def test_a_conversion_streams_from_it_and_resumes(
    server: RangeServer, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazysd.open(golden / "qwen3_moe_tiny").convert("nemo").save(tmp_path / "here", max_shard_size="20KB")
    out = lazysd.open(f"{server.url}/m/").convert("nemo")
    server.reset()
    out.save(tmp_path / "full", max_shard_size="20KB", workers=1)
    left = [len([1 for path, _ in server.requests if path.endswith(".safetensors")]) * 3 // 4]

    def failing(handler: Handler, path: str, data: bytes) -> bool:
        left[0] -= path.endswith(".safetensors")
        if left[0] < 0 and path.endswith(".safetensors"):
            handler.send(500, b"out of order")
            return True
        return False

    server.odd = failing
    with pytest.raises(ReadError, match=r"the server answers 500.*, 5 times"):
        out.save(tmp_path / "there", max_shard_size="20KB", workers=1)
    assert not (tmp_path / "there").exists()
    server.odd = None
    server.reset()
    again = lazysd.open(f"{server.url}/m/").convert("nemo")
    before = server.nbytes
    plan = again.save(tmp_path / "there", max_shard_size="20KB", workers=1)
    assert server.nbytes - before < plan.read_nbytes  # finished shards were kept
    names = sorted(path.name for path in (tmp_path / "here").glob("*.safetensors"))
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert (tmp_path / "there" / "config.json").exists()


def test_the_whole_save_reads_every_byte_once(server: RangeServer, tmp_path: Path) -> None:
    out = lazysd.open(f"{server.url}/m/").convert("nemo")
    server.reset()
    plan = out.save(tmp_path / "out")
    data = sum(len(data) for name, data in server.files.items() if not name.endswith(".safetensors"))
    assert plan.read_nbytes <= server.nbytes <= 1.05 * plan.read_nbytes + data + 64 * len(server.files)


def test_the_command_line(server: RangeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{server.url}/m/"]) == 0
    assert "gate_proj" in capsys.readouterr().out
    assert main(["convert", f"{server.url}/m/", str(tmp_path / "out"), "--to", "nemo", "--verify"]) == 0
    assert main(["inspect", f"{server.url}/absent/"]) == 3
    error = capsys.readouterr().err
    assert error.endswith("found none; check the path\n")


def flaky(answers: list[Any]) -> Any:
    """Misbehave once for each of `answers`, then behave."""

    def odd(handler: Handler, path: str, data: bytes) -> bool:
        if not answers:
            return False
        answers.pop(0)(handler, data)
        return True

    return odd


def hang_up(handler: Handler, data: bytes) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler, data: handler.send(503, b"", {"Retry-After": "0"}),
        lambda handler, data: handler.send(429, b"slowly"),
        lambda handler, data: handler.serve(data, claim=7),
        hang_up,
    ],
)
def test_what_may_be_retried_is(answer: Any) -> None:
    data = os.urandom(5000)
    with serving({"/f": data}) as server:
        file = http.HttpFile(f"{server.url}/f", "f")
        assert file.size == 5000
        server.odd = flaky([answer, answer])
        assert file.text(100, 4000) == data[100:4100]
        server.odd = flaky([answer] * 50)
        with pytest.raises(ReadError, match=r"cannot read 4000 bytes at 100 of http://127.*/f: .*, 5 times"):
            file.text(100, 4000)


def test_another_version_is_refused_before_a_byte_of_it_is_used(server: RangeServer) -> None:
    ckpt = lazysd.open(f"{server.url}/m/")
    node = ckpt["model.embed_tokens.weight"]
    name = node.reads()[0][0].removeprefix(server.url)
    server.files[name] = server.files[name][:-1] + b"\0"
    for _ in range(2):
        with pytest.raises(SourceChangedError, match="changed since the checkpoint was opened"):
            node.materialize()
    server.odd = lambda handler, path, data: bool(handler.serve(data, etag="")) or True  # no ETag, another size
    server.files[name] = server.files[name] + b"more"
    with pytest.raises(SourceChangedError, match=r"is \d+ bytes"):
        node.materialize()


def wrong_range(handler: Handler, data: bytes) -> None:
    handler.send(206, data[:10], {"Content-Range": f"bytes 0-9/{len(data)}"})


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda handler, data: handler.send(200, data), r"the whole file \(200 instead of 206\)"),
        (lambda handler, data: handler.send(206, data[:10]), "expected 206 Partial Content, found 206"),
        (wrong_range, "the server sent bytes 0-9/"),
        (lambda handler, data: handler.send(403, b""), "403 Forbidden; it asks for a permission"),
        (lambda handler, data: handler.send(302, b"", {"Location": "file:///etc/passwd"}), "which is not secure"),
        (lambda handler, data: handler.send(302, b"", {"Location": handler.path}), "redirected more than 5 times"),
        (lambda handler, data: handler.send(418, b""), "found 418"),
    ],
)
def test_wrong_answers_are_refused_at_once(answer: Any, match: str) -> None:
    data = os.urandom(5000)
    with serving({"/f": data}) as server:
        file = http.HttpFile(f"{server.url}/f", "f")
        assert file.size == 5000
        server.reset()
        server.odd = lambda handler, path, data: bool(answer(handler, data)) or True
        with pytest.raises(ReadError, match=match):
            file.text(100, 4000)
        assert len(server.requests) <= ranges.MAX_REDIRECTS + 1


def test_a_server_without_ranges_is_refused(server: RangeServer) -> None:
    server.odd = lambda handler, path, data: bool(handler.send(200, data)) or True
    with pytest.raises(ReadError, match="does not serve ranges, so fetch the files first"):
        lazysd.open(f"{server.url}/m/")


def test_redirects_are_followed_and_tokens_stay_home(server: RangeServer, golden: Path) -> None:
    with serving({}) as front:
        front.files = dict.fromkeys(server.files, b"")

        def away(handler: Handler, path: str, data: bytes) -> bool:
            handler.send(302, b"", {"Location": f"{server.url}{path}?signed=1"})
            return True

        front.odd = away
        store = http.HttpStore(f"{front.url}/m/", lambda: {"Authorization": "Bearer secret"})
        file = store.open("config.json")
        assert file.text(0, file.size) == (golden / "qwen3_moe_tiny" / "config.json").read_bytes()
        assert front.tokens == {"Bearer secret"}
        assert server.tokens == {""}
        asked = len(front.requests)
        assert file.text(70, 5) == server.files["/m/config.json"][70:75]
        assert len(front.requests) == asked  # the way is remembered
        server.odd = flaky([lambda handler, data: handler.send(403, b"expired")])
        assert file.text(70, 5) == server.files["/m/config.json"][70:75]
        assert len(front.requests) == asked + 1


def test_shards_that_are_missing_are_named(server: RangeServer) -> None:
    del server.files["/m/model-00002-of-00002.safetensors"]
    with pytest.raises(MissingShardError, match=r"1 of 2 shards are missing.*model-00002-of-00002"):
        lazysd.open(f"{server.url}/m/")
    server.lists = False
    with pytest.raises(MissingShardError, match=r"model-00002-of-00002.*404 Not Found; check the address"):
        lazysd.open(f"{server.url}/m/")


def test_a_server_that_lists_nothing_is_asked_for_usual_names(server: RangeServer, golden: Path) -> None:
    server.lists = False
    ckpt = lazysd.open(f"{server.url}/m/")
    same(ckpt, golden)
    assert ckpt.remarks == (f"{server.url}/m cannot be listed: only files of usual names were looked for",)
    assert {file.name for file in ckpt.facts.side_files} == {"config.json", "generation_config.json"}


def test_an_index_cannot_lead_elsewhere(server: RangeServer) -> None:
    server.files["/m/model.safetensors.index.json"] = b'{"weight_map": {"w": "../secret.safetensors"}}'
    with pytest.raises(lazysd.errors.UnsafePathError, match="expected a plain name"):
        lazysd.open(f"{server.url}/m/")
    server.files["/m/model.safetensors.index.json"] = b'{"weight_map": {"w": "http://other/x.safetensors"}}'
    with pytest.raises(lazysd.errors.UnsafePathError, match="expected a plain name"):
        lazysd.open(f"{server.url}/m/")


@pytest.mark.parametrize("address", ["http://", "https:///x", "http://[::1", "http://host:port/", "hf://org", "hf://"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(MissingShardError, match="cannot open"):
        lazysd.open(address)


def test_nobody_there() -> None:
    with pytest.raises(ReadError, match=r"cannot read http://127\.0\.0\.1:1/m/: .*refused"):
        lazysd.open("http://127.0.0.1:1/m/")


def test_lazy_tensors_travel_to_other_processes(server: RangeServer) -> None:
    node = lazysd.open(f"{server.url}/m/").convert("nemo")[KEY + "down_projs"][2]
    code = "import pickle, sys; t = pickle.load(sys.stdin.buffer).materialize(); print(float(t.double().sum()))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(node), capture_output=True)
    assert float(done.stdout) == float(node.materialize().double().sum()), done.stderr


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
def test_other_containers_come_the_same_way(tmp_path: Path) -> None:
    state = {"w": torch.randn(20, 30), "v": torch.arange(5)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with serving(files_of(tmp_path)) as server:
        for address in ("/m/pytorch_model.bin", "/m/dcp/.metadata"):
            ckpt = lazysd.open(server.url + address)
            assert {key: bool(torch.equal(ckpt[key].materialize(), state[key])) for key in state} == {
                "w": True,
                "v": True,
            }


def test_the_hub(golden: Path, tmp_path: Path) -> None:
    """hf:// through huggingface_hub's own URL, token and endpoint, which it reads once: in a process of its own."""
    files = {f"/{name.removeprefix('/m/')}": data for name, data in files_of(golden / "qwen3_moe_tiny").items()}
    files["/sub/model.safetensors"] = save({"x": torch.ones(3)})
    with serving(files, lists=False) as server:
        server.model = {
            "id": "org/name", "modelId": "org/name", "sha": "a" * 40, "private": False, "tags": [], "downloads": 0,
            "siblings": [{"rfilename": name.removeprefix("/")} for name in files],
        }  # fmt: skip
        code = f"""if True:
            import lazysd, torch
            ckpt = lazysd.open("hf://org/name@main")
            print(ckpt.path, ckpt.layout, len(ckpt), *sorted(file.name for file in ckpt.facts.side_files))
            print(*ckpt.remarks)
            print(lazysd.open("hf://org/name/sub")["x"].materialize().tolist())
            print(list(lazysd.open("hf://org/name/sub/model.safetensors")))
            ckpt.convert("nemo").save({str(tmp_path / "out")!r})"""
        env = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == f"hf://org/name@{'a' * 40} hf 57 config.json generation_config.json"
        assert "left out, 1 folder: 'hf://org/name@" in lines[1]
        assert lines[2:] == ["[1.0, 1.0, 1.0]", "['x']"]
        assert any("/org/name/resolve/" + "a" * 40 in path for path, _ in server.requests)
        assert "Bearer hf_test" in server.tokens
    lazysd.open(golden / "qwen3_moe_tiny").convert("nemo").save(tmp_path / "here")
    here, there = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "out"))
    assert here == there


def test_together() -> None:
    assert together(lambda n: n * n, range(40), 8) == [n * n for n in range(40)]
    assert together(str, [], 8) == []
    seen: list[int] = []

    def failing(number: int) -> int:
        seen.append(number)
        if number == 3:
            raise ReadError("third")
        return number

    with pytest.raises(ReadError, match="third"):
        together(failing, range(1000), 2)
    assert len(seen) < 1000


def test_an_interrupted_process_waits_for_no_server(server: RangeServer) -> None:
    """The server keeps its answers back; Ctrl-C ends the command all the same."""
    server.odd = lambda handler, path, data: path.endswith(".safetensors") and bool(time.sleep(20))
    command = [sys.executable, "-m", "lazysd", "inspect", f"{server.url}/m/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while not any(path.endswith(".safetensors") for path, _ in server.requests):
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=15)
        assert child.returncode == 130, error
