"""Bytes on disk: what is in a file, which files belong together, and reading and writing them."""
