"""Exports a model as a Hugging Face `LlavaForConditionalGeneration` folder, and verifies that its logits are the same.

Code that is shared by all exports is in `checkpoint.export_parts`."""
