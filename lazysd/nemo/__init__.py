"""NeMo Automodel's interface, drop-in."""
