"""Operators that mix rows, with the reason."""
