"""Passes: one file each, the registry of them, recipes and the runner that checks promises."""
