"""Headline scores as formulas over questions, their confidence intervals, and paired tests between runs.

This package has only pure functions of arrays and the reader and writer of questions.json: no models, no answers."""
