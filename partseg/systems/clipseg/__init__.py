"""CLIPSeg (Lueddecke and Ecker, CVPR 2022), prompted with full object-part names: the baseline of PartCLIPSeg's tables."""
