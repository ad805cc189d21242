"""safetensors: strict headers, shard indexes."""
