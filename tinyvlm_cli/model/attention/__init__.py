"""Attention over packed rows that never crosses the border between two samples."""
