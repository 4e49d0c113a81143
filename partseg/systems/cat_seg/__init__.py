"""CAT-Seg (Cho et al., CVPR 2024; its first version is OV-PARTS' baseline): a cost volume, aggregated and decoded."""
