"""A replica as a process: what it is made of, and what it tells the agent."""
