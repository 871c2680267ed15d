"""Ablations of small vision-language models."""
