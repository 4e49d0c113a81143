"""OPS: parts of any object, without names (Pan et al., CVPR 2023, "Towards Open-World Segmentation of Parts")."""
