"""LoRA as PEFT 0.18 to 0.19.0 stores it on stacked experts."""

from ..layouts.family import Dialect
from ..peft.tables import with_peft

DIALECT = Dialect(
    "peft-0.18",
    "LoRA as PEFT 0.18 to 0.19.0 stores it on stacked experts; base weights as hf",
    form=None,
    source="files written by PEFT 0.18.1 and 0.21.2 and nemo-automodel 0.7.0",
    order=30,
    complete=with_peft,
)
