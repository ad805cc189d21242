"""Pausing the collector: always resumed, and left as whoever runs the program wants it."""

from __future__ import annotations

import gc

import pytest

from lazysd.graph.building import many_nodes


@many_nodes()
def fail() -> None:
    assert not gc.isenabled()
    with many_nodes():
        pass
    assert not gc.isenabled()  # the outer one resumes it
    raise KeyError


def test_the_collector_is_resumed_even_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_a_paused_collector_stays_paused() -> None:
    gc.disable()
    try:
        with many_nodes():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
