"""Every family x dialect on random sizes: what is wrong is refused, what is a part converts to a part."""

from __future__ import annotations

import pytest

from lazysd.layouts.registry import families
from lazysd.testing.conformance.layouts import FamilySuite

FAMILIES = sorted(name for name, family in families().items() if family.experts)


@pytest.fixture(params=FAMILIES)
def suite(request: pytest.FixtureRequest) -> FamilySuite:
    found = FamilySuite()
    found.family, found.max_examples = request.param, 2
    return found


def test_a_fault_is_refused(suite: FamilySuite) -> None:
    suite.test_a_fault_is_refused()


def test_experts_alone_are_right_or_refused(suite: FamilySuite) -> None:
    suite.test_experts_alone_are_right_or_refused()
