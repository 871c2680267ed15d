"""Training sets and benchmarks for the demo, and pretrained weights, all from installed packages.

The files are in the formats that users have. No code here reads them, and nothing else may depend on this folder.
"""
