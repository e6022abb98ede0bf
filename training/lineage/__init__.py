"""Lineage: what a dataset version, a run or a model version came from, and what came of it."""
