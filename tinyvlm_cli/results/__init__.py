"""The results folder: all paths in it, its records, and one reader and one writer per record type.

Files may come from other people, so they are read as data and never executed."""
