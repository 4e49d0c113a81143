"""PartCLIPSeg (Choi et al., NeurIPS 2024): CLIPSeg's decoder for parts and objects, combined per object-part."""
