"""Ways to copy a strided block: one file each, found by `move.transpose`."""
