"""Training sets, benchmarks and pretrained weights for the demo, created from installed packages.

The files have the same formats as the original data sets. No other package may import this one.
"""
