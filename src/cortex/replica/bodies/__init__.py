"""Request bodies to the samples that they carry, and results to JSON. Pure: knows neither requests nor models."""
