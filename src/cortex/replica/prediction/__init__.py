"""A prediction between its edges: hooks, the model's turn, batches and their guard. Knows no protocol."""
