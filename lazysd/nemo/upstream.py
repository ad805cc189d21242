"""nemo-automodel's own base classes, where it is installed: its callers ask whether an adapter is an instance of them.

Source: nemo-automodel 0.7.0, components/checkpoint/{addons,checkpointing}.py (the callers), moe/state_dict_mixin.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging

logger = logging.getLogger(__name__)

_BASES = (
    ("nemo_automodel.components.moe.state_dict_mixin", "MoESplitExpertsStateDictMixin"),
    ("nemo_automodel.components.checkpoint.state_dict_adapter", "StateDictAdapter"),
)


def bases() -> tuple[type, ...]:
    """The two classes, or none where nemo-automodel is absent or cannot be imported (which a log line then says).

    Without them NeMo's export leaves the experts out of adapter_config.json and never loads in place.
    """
    if importlib.util.find_spec("nemo_automodel") is None:
        return ()
    try:
        return tuple(getattr(importlib.import_module(module), name) for module, name in _BASES)
    except (ImportError, AttributeError) as error:
        logger.warning("nemo-automodel is installed, but its base classes cannot be imported: %s", error)
        return ()
