"""Networks: one file per system, shared towers and layers, conversion of public checkpoints."""
