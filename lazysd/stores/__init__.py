"""Where bytes are: files read by offset, output folders and shard files."""
