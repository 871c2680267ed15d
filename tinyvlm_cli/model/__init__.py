"""The model: vision encoder, connector, LLM, how they are joined, and what computing them costs.

Nothing here knows about stages on disk, optimizers or benchmarks."""
