"""What is written down of what happens: logs, tracebacks, counts."""
