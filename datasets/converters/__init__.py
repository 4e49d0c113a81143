"""What the tools in `datasets/` share: raw annotations in, the benchmark's layout and a provenance file out."""
