"""LazyTensor as users hold it: methods, indexing, torch functions, cache."""
