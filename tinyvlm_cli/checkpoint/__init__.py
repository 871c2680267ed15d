"""Weights on disk: a stage's own files, and conversion from and to the formats of other projects."""
