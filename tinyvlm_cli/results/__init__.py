"""The results folder: every path in it, its records, and one reader and one writer for each.

Files in it may come from other people: they are read as data, and nothing in them is executed."""
