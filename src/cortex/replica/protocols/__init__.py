"""Bytes to samples and results to bytes: protocols stand at the edges of a prediction; what is between knows none."""
