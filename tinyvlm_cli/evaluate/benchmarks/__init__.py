"""One file per benchmark; none imports torch."""
