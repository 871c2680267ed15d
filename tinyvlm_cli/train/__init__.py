"""Training: the stage graph, stage jobs, the engine, the training loop and its metrics.

Training and evaluation do not import each other; they only share the results folder."""
