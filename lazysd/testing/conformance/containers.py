"""What every container and every sink keeps to. Inherit a class, say how a folder is written, run it with pytest.

class TestMyContainer(ContainerSuite):
    name = "mine"

    def write(self, tensors, folder):
        my_tool.save(tensors, folder)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import pytest
import torch

from ...errors import FormatError, LazysdError
from ...formats import containers, sinks
from ...formats.base import Folder, Row
from ...opening import open as open_checkpoint
from ...stores.base import Options
from ...stores.places import place_of
from ..comparing import assert_same_bytes
from ..reading import assert_reads_only


def tensors() -> dict[str, torch.Tensor]:
    """A few tensors of several dtypes and shapes, with NaN payloads; "big" is larger than any header."""
    bits = torch.tensor([0x7F81, -0x7F, 0, 1], dtype=torch.int16)
    return {
        "model.w": torch.arange(12.0).reshape(3, 4),
        "nan": bits.view(torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "big": torch.arange(50_000, dtype=torch.int32).reshape(50, 1000),
        "flags": torch.tensor([True, False]),
    }


class ContainerSuite(ABC):
    """Tests of one container, on folders that the real tool has written."""

    name: str  # as the container calls itself

    @abstractmethod
    def write(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write the tensors into a folder, which exists and is empty, as the real tool does."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "made").mkdir()
        self.write(tensors(), tmp_path / "made")
        return tmp_path / "made"

    def test_recognises_its_own_and_nothing_else(self, folder: Path, tmp_path: Path) -> None:
        (member,) = (member for member in containers.members() if member.name == self.name)
        assert member.recognises(Folder(place_of(folder, Options())))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("nothing")
        assert not member.recognises(Folder(place_of(tmp_path / "other", Options())))
        assert not member.recognises(Folder(place_of(tmp_path / "other" / "notes.txt", Options())))

    @pytest.mark.parametrize("io", ["mmap", "pread"])
    def test_gives_every_bit(self, folder: Path, io: str) -> None:
        assert_same_bytes(open_checkpoint(folder, io=io), tensors())

    def test_opening_reads_no_data_and_a_slice_its_own(self, folder: Path) -> None:
        ckpt = assert_reads_only(lambda: open_checkpoint(folder, io="pread"))
        row = ckpt["big"][7]
        assert assert_reads_only(row.materialize, [row], exactly=True).tolist() == list(range(7000, 8000))
        assert sum(nbytes for *_, nbytes in row.reads()) == row.nbytes

    def test_accounts_for_every_file(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("kept")
        (member,) = (member for member in containers.members() if member.name == self.name)
        place = Folder(place_of(folder, Options()))
        contents = member.read(place)
        here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert contents.used == here - {"notes.txt"}
        assert {file.name for file in contents.files} <= contents.used
        assert [file.name for file in open_checkpoint(folder).facts.side_files] == ["notes.txt"]
        assert all(remark[-1] not in ".\n" for remark in contents.remarks)

    def test_reads_from_any_store(self, folder: Path) -> None:
        held = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert_same_bytes(open_checkpoint(held), tensors())

    def test_a_truncated_file_is_an_error_of_ours(self, folder: Path) -> None:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            whole = path.read_bytes()
            for left in (0, 1, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:left])
                with pytest.raises(LazysdError):
                    assert_same_bytes(open_checkpoint(folder, io="pread"), tensors())
            path.write_bytes(whole)


class SinkSuite(ABC):
    """Tests of one sink."""

    name: str  # as the sink calls itself
    cannot: tuple[str, ...] = ()  # codes of dtypes that the format cannot hold

    def rows(self) -> list[Row]:
        """Tensors of every dtype, aligned in no way."""
        from ... import dtypes

        shapes = [(), (0, 3), (5,), (3, 12)]
        found = []
        for number, code in enumerate(sorted(set(dtypes.DTYPES) - set(self.cannot))):
            dims = (3, 12) if dtypes.is_packed(code) else shapes[number % 4]
            numel = 1
            for size in dims:
                numel *= size
            found.append(Row(f"{code}.{number}", code, dims, numel * dtypes.itemsize(code)))
        return found

    def test_tensors_and_what_stands_around_them_fill_the_file(self) -> None:
        sink, rows = sinks.get(self.name), self.rows()
        stored = sink.lay_out(iter(rows), {"format": "pt"})
        around = list(sink.around(iter(rows), {"format": "pt"}, [0] * len(rows), stored.around_nbytes))
        spans = [(offset, len(piece)) for offset, piece in around]
        spans += [(start, row.nbytes) for start, row in zip(stored.starts, rows, strict=True)]
        at = 0
        for offset, nbytes in sorted(span for span in spans if span[1]):
            assert offset == at, "a hole, or an overlap"
            at += nbytes
        assert at == stored.nbytes
        assert sum(len(piece) for _, piece in around) == stored.around_nbytes
        assert [offset for offset, _ in around] == sorted(offset for offset, _ in around)

    def test_lengths_do_not_depend_on_checksums(self) -> None:
        sink, rows = sinks.get(self.name), self.rows()
        nbytes = sink.lay_out(rows, {}).around_nbytes
        with_none, with_some = (
            [(offset, len(piece)) for offset, piece in sink.around(rows, {}, sums, nbytes)]
            for sums in ([0] * len(rows), [crc32(bytes([n])) for n in range(len(rows))])
        )
        assert with_none == with_some

    def test_names_of_files_differ(self) -> None:
        sink = sinks.get(self.name)
        assert len({sink.file_name("model", number, 12) for number in range(1, 13)}) == 12

    @pytest.mark.parametrize("shard", ["5GB", "1000"])
    def test_what_it_writes_opens_and_is_the_same(self, tmp_path: Path, shard: str) -> None:
        source = open_checkpoint({"model.safetensors": _as_safetensors()})
        source.save(tmp_path / "out", max_shard_size=shard, format=self.name)
        again = open_checkpoint(tmp_path / "out")
        assert_same_bytes(again, tensors())
        assert again.remarks == ()
        again.save(tmp_path / "again", max_shard_size=shard, format=self.name)
        for path in (tmp_path / "out").iterdir():
            if path.name != "lazysd.manifest.json":
                assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name

    def test_what_it_cannot_hold_is_refused(self) -> None:
        sink = sinks.get(self.name)
        for code in self.cannot:
            with pytest.raises((FormatError, LazysdError), match=code):
                sink.lay_out([Row("x", code, (2, 12), 24)], {})


def _as_safetensors() -> bytes:
    from safetensors.torch import save

    return save(tensors())
