"""The tests of the compiled kernel, on a build of it that lies elsewhere. Run by `make sanitize`.

python tests/sanitized.py build/sanitize
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lazysd.move
from lazysd.move.kernels import compiled

if __name__ == "__main__":
    built = Path(sys.argv[1]).resolve()
    lazysd.move.__path__.insert(0, str(built / "lazysd" / "move"))
    assert compiled.KERNEL.is_available()
    from lazysd.move import _strided  # type: ignore[attr-defined]

    assert Path(_strided.__file__).is_relative_to(built), _strided.__file__
    tests = str(Path(__file__).with_name("test_kernels.py"))
    sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", tests, "-k", "ompiled or agree"]))
