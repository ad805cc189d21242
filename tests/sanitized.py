"""The tests of the compiled kernels, on a build of them that lies elsewhere. Run by `make sanitize`.

python tests/sanitized.py build/sanitize
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import lazysd.counting
import lazysd.move
import lazysd.quant
import lazysd.stores
from lazysd.counting.kernels import compiled as counting
from lazysd.move.kernels import compiled
from lazysd.quant.kernels import compiled as decoding
from lazysd.stores import crc

if __name__ == "__main__":
    built = Path(sys.argv[1]).resolve()
    for room, name in (
        (lazysd.move, "_strided"),
        (lazysd.quant, "_decode"),
        (lazysd.counting, "_count"),
        (lazysd.stores, "_crc"),
    ):
        room.__path__.insert(0, str(built / "lazysd" / room.__name__.split(".")[-1]))
        found = importlib.import_module(f"{room.__name__}.{name}").__file__
        assert found is not None
        assert Path(found).is_relative_to(built), found
    assert compiled.KERNEL.is_available()
    assert decoding.is_there()
    assert counting.KERNEL.is_available()
    assert crc._quickest().__module__ == crc.MODULE
    names = ("test_kernels.py", "test_decode_kernels.py", "test_counting.py", "test_crc.py")
    tests = [str(Path(__file__).with_name(name)) for name in names]
    sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests, "-k", "ompiled or agree or small or threads"]))
