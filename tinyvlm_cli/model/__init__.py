"""The model: vision encoder, connector, LLM and how they are joined."""
