"""The benchmarks, one file each, without importing torch."""
