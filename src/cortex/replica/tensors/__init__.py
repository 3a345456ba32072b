"""Values to the arrays that a model takes, and what does not match its signature. Pure."""
