"""Benchmarks: their questions, the answers of a model, and official scores.

Nothing here imports the training code, and scoring does not import torch."""
