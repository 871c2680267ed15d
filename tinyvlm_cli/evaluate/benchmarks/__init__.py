"""One file a benchmark; none imports torch."""
