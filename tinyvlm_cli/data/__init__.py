"""Training data: records, chat text and labels, images, the index over a training set, packing and loading.

Nothing here knows the model beyond the number of tokens that an image takes."""
