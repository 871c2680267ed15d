"""Attention over packed rows: the operation that training registers with transformers, and its cuDNN kernels.

Nothing here knows about a particular language model."""
