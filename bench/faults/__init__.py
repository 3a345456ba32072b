"""What `bench/chaos.py` does to a Cortex, what it expects of it, and what it says about it."""
