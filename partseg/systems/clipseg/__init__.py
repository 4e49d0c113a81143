"""CLIPSeg (Lueddecke and Ecker, CVPR 2022), prompted with object-part names: the baseline of PartCLIPSeg's tables."""
