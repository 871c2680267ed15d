"""Weights on disk: the files of a stage, and import from and export to the formats of other projects.

Nothing here trains a model or chooses the stages of a run. Code and pickles in checkpoints are never executed."""
