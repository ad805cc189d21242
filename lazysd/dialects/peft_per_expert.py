"""LoRA for each expert's projections (transformers 4, NeMo's v4_compatible)."""

from ..layouts.family import Dialect
from ..peft.tables import with_peft

DIALECT = Dialect(
    "peft-per-expert",
    "LoRA for each expert's projections (transformers 4, NeMo's v4_compatible); base weights as hf",
    form=None,
    source="files written by PEFT 0.18.1 and 0.21.2 and nemo-automodel 0.7.0",
    order=50,
    complete=with_peft,
)
