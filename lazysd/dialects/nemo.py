"""NeMo Automodel's grouped experts."""

from ..layouts.family import Dialect
from ..peft.tables import with_native

FORM = {
    "gate_up": ("gate_and_up_projs", "e h (g i)"),
    "down": ("down_projs", "e i h"),
    "gate_up_bias": ("gate_up_proj_bias", "e (g i)"),
    "down_bias": ("down_proj_bias", "e h"),
}
DIALECT = Dialect(
    "nemo",
    "NeMo Automodel: experts stacked and transposed, gate beside up; LoRA likewise",
    form=FORM,
    everywhere=False,
    unless="no state dict adapter of nemo-automodel is known to read this family",
    source="nemo-automodel 0.7.0, its state dict adapters",
    order=20,
    complete=with_native,
)
