"""Headline scores as formulas over questions, their confidence intervals, and paired tests between runs.

Contains only pure functions of arrays and the reader and writer of questions.json, but no models or answers."""
