"""The model: vision encoder, connector and LLM, their combination, and its FLOPs.

Nothing here depends on stages on disk, optimizers or benchmarks."""
