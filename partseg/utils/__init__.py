"""Helpers every layer may import: config, distributed, environment, pictures."""
