"""Benchmarks, generation and the runner that joins them."""
