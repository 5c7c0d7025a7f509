"""Trained networks: loading one from a run or a file, converting its weights to and from PyTorch's, evaluating it."""
