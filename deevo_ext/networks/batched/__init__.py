"""Runs a network graph for many members at once, on our own kernels."""
