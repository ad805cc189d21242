"""Ways to count and to sum up elements, a file each."""
