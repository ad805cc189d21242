"""Ways to decode codes and scales: one file each, found by `quant.decoding`."""
