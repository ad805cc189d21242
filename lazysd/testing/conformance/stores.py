"""What every store keeps to. Inherit the class, say how a folder of files comes to be in the store, run it with pytest.

class TestMyStore(StoreSuite):
    def make(self, files, tmp_path):
        return MyStore(...)
"""

from __future__ import annotations

import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import pytest

from ...errors import ClosedCheckpointError, LazysdError, MissingShardError, ReadError, UnsafePathError
from ...stores.base import File, Store

DATA = bytes(range(256)) * 41  # no multiple of any block
FILES = {"model.safetensors": DATA, "config.json": b"{}", "empty": b"", "deep/er/file": b"inside", "deep/two": b"2"}


def read(file: File, offset: int, nbytes: int) -> bytes:
    """Bytes of a file."""
    held = bytearray(nbytes)
    file.read([(memoryview(held), offset)])
    return bytes(held)


class StoreSuite(ABC):
    """Tests of one store. `make` is called anew for each."""

    lists = True  # False for a store that cannot list what it holds
    changes = True  # False where files cannot change
    pickles = True

    @abstractmethod
    def make(self, files: Mapping[str, bytes], tmp_path: Path) -> Store:
        """A store that holds these files and nothing else."""

    def change(self, name: str, data: bytes, tmp_path: Path) -> None:
        """Replace what a file of the store holds, behind its back."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return self.make(FILES, tmp_path)

    def test_lists_every_file_below_the_folder(self, store: Store) -> None:
        if self.lists:
            assert store.list().files == tuple(sorted(FILES))
            assert store.list(deep=False).files == tuple(sorted(name for name in FILES if "/" not in name))
            assert (dict(store.list().others), store.list().is_whole) == ({}, True)
        else:
            assert not store.list().is_whole

    def test_knows_what_it_has(self, store: Store) -> None:
        assert all(store.has(name) for name in FILES)
        assert not any(store.has(name) for name in ("absent", "deep", "deep/er", "", ".", "model", "deep/er/file/x"))

    def test_a_file_says_what_it_is(self, store: Store) -> None:
        for name, data in FILES.items():
            file = store.open(name)
            assert (file.name, file.size) == (name, len(data))
            assert name.rsplit("/", 1)[-1] in file.path
            assert file.cost.gap_nbytes >= 0
            assert min(file.cost.block_nbytes, file.cost.num_in_flight) >= 1

    def test_reads_any_range(self, store: Store) -> None:
        file = store.open("model.safetensors")
        for start, stop in ((0, len(DATA)), (0, 1), (len(DATA) - 1, len(DATA)), (255, 9000), (7, 7)):
            assert read(file, start, stop - start) == DATA[start:stop] == file.text(start, stop - start)
        assert read(store.open("empty"), 0, 0) == b""
        assert read(store.open("deep/er/file"), 2, 3) == b"sid"

    def test_reads_many_parts_each_into_its_own_buffer(self, store: Store) -> None:
        ranges = [(5000, 900), (0, 1), (10, 3000), (13, 2), (9000, 0), (1, 1), (2, 8)]
        held = [bytearray(nbytes) for _, nbytes in ranges]
        file = store.open("model.safetensors")
        file.read([(memoryview(buffer), offset) for buffer, (offset, _) in zip(held, ranges, strict=True)])
        wanted = [DATA[offset : offset + nbytes] for offset, nbytes in ranges]
        assert [bytes(buffer) for buffer in held] == wanted == file.texts(ranges)

    def test_a_read_past_the_end_is_an_error_that_says_so(self, store: Store) -> None:
        file = store.open("model.safetensors")
        for start, nbytes in ((len(DATA) - 4, 8), (len(DATA), 1), (len(DATA) + 100, 5)):
            with pytest.raises(ReadError, match=r"model\.safetensors"):
                read(file, start, nbytes)

    def test_views_are_the_bytes_and_never_write_back(self, store: Store) -> None:
        file = store.open("model.safetensors")
        view = file.view(3, 100)
        assert file.view(3, 0) is None
        if view is not None:
            assert bytes(view) == DATA[3:103]
            file.close()
            view[0] = view[0] ^ 255
            again = store.open("model.safetensors")
            assert read(again, 3, 1) == DATA[3:4]
            assert bytes(view[1:]) == DATA[4:103]

    def test_many_threads_read_one_file(self, store: Store) -> None:
        file, wrong = store.open("model.safetensors"), []

        def work(number: int) -> None:
            for step in range(20):
                start = (number * 131 + step * 977) % 9000
                if read(file, start, 1000) != DATA[start : start + 1000]:
                    wrong.append(start)

        crew = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        assert wrong == []

    def test_identity_tells_files_apart_and_is_the_same_again(self, store: Store) -> None:
        first, again, other = (store.open(name) for name in ("model.safetensors", "model.safetensors", "deep/two"))
        assert first.identity == again.identity != other.identity
        assert hash(first.identity) == hash(again.identity)
        assert repr(first.identity) == repr(again.identity)
        first.check_unchanged()

    def test_a_file_that_changes_is_noticed(self, store: Store, tmp_path: Path) -> None:
        if not self.changes:
            return
        file, late = store.open("model.safetensors"), store.open("model.safetensors")
        assert read(file, 0, 10) == DATA[:10]
        assert late.identity == file.identity
        self.change("model.safetensors", DATA[::-1], tmp_path)
        with pytest.raises(LazysdError, match=r"changed|modified"):
            file.check_unchanged()
        with pytest.raises(LazysdError, match=r"changed|modified"):
            read(late, 0, 10)

    def test_a_closed_file_says_so(self, store: Store) -> None:
        file = store.open("model.safetensors")
        read(file, 0, 1)
        file.close()
        file.close()
        with pytest.raises(ClosedCheckpointError, match="open it again"):
            read(file, 0, 1)

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "..", ".", "", "a//b", "a/", "a\\b", "x\0"])
    def test_no_name_leads_out_of_the_folder(self, store: Store, name: str) -> None:
        assert not store.has(name)
        with pytest.raises(UnsafePathError, match="expected a plain name"):
            store.open(name)

    def test_a_missing_file_is_named(self, store: Store) -> None:
        with pytest.raises(MissingShardError, match="absent"):
            read(store.open("absent.safetensors"), 0, 1)

    def test_files_travel_to_other_processes(self, store: Store) -> None:
        if self.pickles:
            file = store.open("model.safetensors")
            assert read(pickle.loads(pickle.dumps(file)), 100, 50) == DATA[100:150]
