"""Writes a run as the folder of a Hugging Face `LlavaForConditionalGeneration`, and proves that it computes the same.

What is common to all exports is in `checkpoint.export_parts`."""
