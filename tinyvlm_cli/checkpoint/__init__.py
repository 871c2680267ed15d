"""Weights on disk: the files of a stage, and conversion from and to the formats of other projects.

Nothing here trains or decides which stages a run has; no code and no pickled object of a foreign checkpoint is run."""
