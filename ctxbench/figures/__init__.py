"""Figures of records: pure functions, the same bytes for the same records."""
