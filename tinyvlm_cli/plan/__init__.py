"""Estimates of the sizes, work, memory and GPU-hours of a run before training, and benchmarks to measure them.

Nothing here trains a run or reads its data."""
