"""Headline scores as formulas over questions, their intervals, and paired tests between runs.

Only pure functions of arrays live here, with the reader and writer of questions.json; models and answers do not."""
