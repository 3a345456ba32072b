"""
The control plane (users know it as the operator): keeps the world as the user wants it.

Observe, plan, apply; nothing is held in memory that state, engine and agents could not give back in one tick. Users'
code and models never run here.
"""
