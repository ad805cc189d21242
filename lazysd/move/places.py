"""Where tensors are put: what users say of a device, held against what torch can use here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..arguments import kind_of

if TYPE_CHECKING:
    import torch


def device_of(value: Any) -> torch.device:
    """The device that a str, an int or a torch.device names.

    Raises:
        TypeError: another kind of value. RuntimeError: no such device, or none that this torch can use.
    """
    import torch

    if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
        raise TypeError(f"device has to be a str, int or torch.device, not {kind_of(value)}")
    try:
        device = torch.device(value)
        if device.type not in ("cpu", "meta"):
            torch.empty(0, device=device)  # what torch was built without fails here, in many ways
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"no device {kind_of(value)} can be used here: {why[:200]}") from error
    return device
