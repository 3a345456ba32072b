"""What is asked of a replica over HTTP: each protocol reads its samples or tensors, and writes results and errors."""
