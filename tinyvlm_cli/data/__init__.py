"""Training data: records, chat formats and labels, images, checking and indexing a split, packing, and loading.

This folder may not import model code. Only the number of tokens per image depends on the model.
"""
