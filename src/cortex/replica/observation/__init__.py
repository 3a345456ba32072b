"""What is written down of what happens: logs, traces, counts."""
