"""Training: the stage graph, a stage's job, the engine, the loop and its measurements.

Training and evaluation do not import each other; they meet in the results folder."""
