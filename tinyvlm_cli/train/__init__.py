"""Stages, the optimizer loop and its measurements."""
