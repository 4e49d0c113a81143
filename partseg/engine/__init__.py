"""The training loop, its hooks, optimisers, checkpoints and writers."""
