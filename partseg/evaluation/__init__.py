"""Scores to label maps (protocols), label maps to numbers (metrics)."""
