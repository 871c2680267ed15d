"""Attention over packed rows: the function that training registers with transformers, and its cuDNN kernels.

Nothing here is specific to a particular language model."""
