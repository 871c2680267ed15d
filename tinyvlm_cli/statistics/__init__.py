"""Headline scores as formulas over questions, their intervals, and paired tests between runs.

Pure functions of arrays; only the file of per-question results is read and written here."""
