"""Data sets: facts, uint8 images, hold-outs, augmentation, and batches as a function of seed and step."""
