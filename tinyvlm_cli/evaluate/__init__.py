"""Benchmarks, answering their questions with a model, and scoring the answers.

Nothing here imports training; the two meet in the results folder."""
