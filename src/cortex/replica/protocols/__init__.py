"""Bytes to samples and results to bytes: what stands at the edges of a prediction."""
