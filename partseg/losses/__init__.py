"""Criterion and its terms; no parameters here."""
