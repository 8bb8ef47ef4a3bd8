"""Segmentation on mmsegmentation, with the block in the decode head as the only difference."""
