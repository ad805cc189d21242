"""Every op, every way to the bytes, under the code's own constants drawn down to a few bytes: against eager torch."""

from __future__ import annotations

import pytest
from graph_paths import PATHS, check, constants
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = {"save": 250, "iterated": 250, "sharded": 200, "checkpointed": 200}  # these take several milliseconds each


@pytest.mark.parametrize("path", PATHS)
def test_every_way_gives_what_eager_torch_gives(path: str) -> None:
    @settings(max_examples=EXAMPLES.get(path, 400))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        check(path, data)

    holds()


def test_the_constants_are_drawn_where_they_are_used() -> None:
    from lazysd.move import blocks, materialize
    from lazysd.move.lanes import host

    with constants({"HOST_BLOCK_NBYTES": 24}):
        assert blocks.HOST_BLOCK_NBYTES == materialize.HOST_BLOCK_NBYTES == host.HOST_BLOCK_NBYTES == 24
        assert host.HostLane.block_nbytes == 24
    assert blocks.HOST_BLOCK_NBYTES == host.HostLane.block_nbytes == 1 << 20
