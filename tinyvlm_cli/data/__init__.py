"""Training data: records, chat formats and labels, images, checking and indexing a split, packing, and loading.

This folder may not import model code. All that it needs from the model is the number of tokens per image.
"""
