"""Lanes: how elements get into a destination, one file for each kind of device."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any

from ...doors import members_of

if TYPE_CHECKING:
    from .base import Lane

_local = threading.local()


@cache
def members() -> dict[str, type[Lane]]:
    """Every `LANE` that a file of this room defines, by each type of device that it serves."""
    lanes: list[type[Lane]] = members_of(__name__, "LANE")
    return {name: lane for lane in lanes for name in lane.device_types}


def is_filled(device_type: str) -> bool:
    """Whether memory of such a device is filled in place; for others, a host tensor is filled and moved by torch."""
    return device_type == "meta" or device_type in members()


def lane_for(device: Any) -> Lane:
    """This thread's lane to a device, made at first use and kept. ValueError: there is none."""
    lanes: dict[str, Lane] | None = getattr(_local, "lanes", None)
    if lanes is None:
        lanes = _local.lanes = {}
    key = str(device)
    if key not in lanes:
        lane = members().get(key.partition(":")[0])
        if lane is None:
            names = " or ".join(sorted(members()))
            raise ValueError(f"cannot fill tensors on device {key}; materialise on {names} and move them")
        lanes[key] = lane(key)
    return lanes[key]
