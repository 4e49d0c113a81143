"""CRIS (Wang et al., CVPR 2022): the mask of one phrase, fine-tuned on phrases that name parts."""
