"""Readers of data files: rows, columns, and the published forms."""
