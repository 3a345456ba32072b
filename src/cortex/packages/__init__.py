"""
Which Python packages a replica gets: what a user asks for, what a replica needs, and what both came to.

Pure, but for `runtime`, which reads what is installed here. Nothing is resolved, fetched or installed in this folder:
that is the node's work (`agent.installations`). Import from the modules.

requirements  the text of a requirements.txt to `Requirements`, or all its problems at once
runtime       what a replica itself needs, with the ranges that this Cortex was made for
lock          what an installer resolved, as a `wire.packages.PackageLock` and back
"""
