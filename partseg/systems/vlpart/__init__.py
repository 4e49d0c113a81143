"""VLPart (Sun et al., ICCV 2023): parts and objects as instances, boxes and masks, named by a text classifier."""
