"""Lazy tensors on a DeviceMesh."""
