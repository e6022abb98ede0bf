"""Sweeps: searches for the best settings. Trials are drawn, trained as runs, judged at rungs, and the best is kept."""
