"""Names that moved to sources.py, until every benchmark imports them from there."""

from tinyvlm_cli.evaluate.sources import python_string, read_json, read_lines

__all__ = ["python_string", "read_json", "read_lines"]
