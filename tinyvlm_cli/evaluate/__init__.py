"""Benchmarks: their questions, a model's answers to them, and the official score of the answers.

Nothing here imports training, which it meets in the results folder; scoring imports no torch."""
