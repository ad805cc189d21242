"""transformers' own state dict in memory."""

from ..layouts.family import FUSED, Dialect
from ..peft.tables import without

DIALECT = Dialect(
    "hf-fused",
    "transformers 5 in memory: experts stacked, gate over up, not transposed",
    form=FUSED,
    source="transformers 5.23, save_pretrained(save_original_format=False)",
    order=10,
    complete=without,
)
