"""How files become tensors, and tensors files."""
