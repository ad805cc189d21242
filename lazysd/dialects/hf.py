"""Hugging Face's files, as the hub has them and save_pretrained writes them."""

from ..layouts.family import Dialect
from ..peft.tables import without

DIALECT = Dialect(
    "hf",
    "Hugging Face on disk: one tensor per expert and projection, or as the family's files have it",
    form=None,
    source="transformers 5.23, save_pretrained",
    order=0,
    complete=without,
)
