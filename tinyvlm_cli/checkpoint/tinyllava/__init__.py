"""Reads TinyLLaVA's published checkpoints without running their code.

Each file knows one thing of that format: where tensors are, what connectors are called, what a run of ours needs."""
