"""Training data: records, chat text and labels, images, the check and the index of a split, packing and loading.

Of the model, this folder knows only the number of tokens of an image. It may not import any model code.
"""
