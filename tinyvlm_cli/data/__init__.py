"""Records, chat text, token ids, images and the index over a training set."""
