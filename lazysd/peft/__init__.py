"""Adapters: what their JSON files say, what their tensors mean, when two of them are the same."""
