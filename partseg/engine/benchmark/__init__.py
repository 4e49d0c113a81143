"""Seconds, units and bytes of a training step, of an evaluated image and of data loading (tools/benchmark.py)."""
