"""Reads TinyLLaVA's published checkpoints without running their code."""
