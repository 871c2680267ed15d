"""Writes a model as the folder of a Hugging Face LlavaForConditionalGeneration."""
