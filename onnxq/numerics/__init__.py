"""Arithmetic on arrays: no graph, no files. Hot loops are native, each beside its NumPy meaning."""
