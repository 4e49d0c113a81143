"""Thin wrappers around library towers: what several systems need of them, and nothing else."""
