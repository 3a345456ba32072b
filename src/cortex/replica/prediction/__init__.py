"""A prediction between its edges: calls, hooks, the model's turn, batches and their guard. Knows no protocol."""
