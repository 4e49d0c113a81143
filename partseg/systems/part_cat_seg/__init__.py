"""PartCATSeg (CVPR 2025): cost volumes of objects, parts and object-parts through shared layers, guided by DINOv2."""
