"""What a model and a handler are, found out before they serve."""
