"""Few-bit weights: one file a scheme, found by scanning this folder. See base.Scheme for what a scheme is."""
