"""LoRA as PEFT 0.19.1 and later stores it on stacked experts."""

from ..layouts.family import Dialect
from ..peft.tables import with_peft

DIALECT = Dialect(
    "peft-0.19",
    "LoRA as PEFT 0.19.1 and later stores it on stacked experts; base weights as hf",
    form=None,
    source="files written by PEFT 0.18.1 and 0.21.2 and nemo-automodel 0.7.0",
    order=40,
    aliases=("peft",),  # the newest
    complete=with_peft,
)
