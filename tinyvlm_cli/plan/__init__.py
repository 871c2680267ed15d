"""The cost of a run before it is trained: sizes, work, memory and hours; and benchmarks that measure them.

Nothing here trains a run or reads its data."""
