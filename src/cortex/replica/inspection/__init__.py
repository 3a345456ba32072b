"""What a model and a handler are, and whether they answer, found out before they serve."""
