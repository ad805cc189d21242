"""Showing checkpoints and tensors to people: text and HTML. Nothing here reads tensor data or needs torch."""
