"""Attention: queries meet keys of the same row."""
